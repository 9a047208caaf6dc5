"""A classifier that came as an ONNX graph, in `harden`: frozen, differentiated, and kept to the byte.

Training goes through its conversion to PyTorch (metastable.networks.onnx_gradient), whose weights are fixed.
What a run leaves behind, and the bundle that `export harden` makes, holds the graph itself, unchanged.

No mode trains the graph.  Exporters fold batch norm into convolutions, leave out dropout, and write constants
and weights alike, so that what would learn is not the network that its owner trained; and what would come
out is a graph that its owner never tested.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metastable import bundle
from metastable.bundle import shipped
from metastable.errors import BundleError, DataError
from metastable.networks.onnx_classifier import OnnxClassifier
from metastable.networks.onnx_gradient import Differentiable
from metastable.training.harden_config import HardenConfig


@dataclass(frozen=True)
class Brought:
    """A frozen classifier: `network` for gradients, and the part of its bundle that it is a conversion of."""

    network: Differentiable
    part: bundle.OnnxPart
    classes: int

    def described(self) -> dict[str, Any]:
        """As in bundle.json."""
        return {"kind": self.part.kind, **dataclasses.asdict(self.part)}

    def check(self, images: Tensor, device: torch.device) -> None:
        """NoGradient unless it answers and differentiates on a GPU as it did on the CPU."""
        if device.type != "cpu":
            self.network.check(images)


def of_bundle(config: HardenConfig, images: Tensor) -> Brought | None:
    """The classifier of the configuration's bundle, or None if it is no ONNX graph.

    Args: images: float32 [N, C, H, W] in [0, 1], some of the training images.

    Raises BundleError where the configuration would train it, DataError for images of another shape than the
    bundle's, and what `Differentiable` raises.
    """
    folder = shipped.path(config.bundle)
    part = bundle.stored_part(folder, "classifier").part
    if not isinstance(part, bundle.OnnxPart):
        return None
    if config.fresh or "classifier" in config.moves:
        raise BundleError(
            f"{folder}: its classifier is an ONNX graph, which stays as it is: --mode purifier or stability, "
            "without --fresh, trains the purifier before it, --classifier NAME a new classifier in its place"
        )
    loaded = bundle.load(folder)
    if (shape := tuple(images.shape[1:])) != loaded.shape:
        raise DataError(
            f"the bundle {loaded.name} is for images of {loaded.shape}, {config.dataset} has {shape}: name "
            "another --bundle or --dataset"
        )
    assert isinstance(loaded.classifier, OnnxClassifier)
    return Brought(Differentiable(loaded.classifier, images), part, len(loaded.classes))
