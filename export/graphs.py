"""A bundle as ONNX graphs: the score of each network, and the classifier.

The dynamics stay outside: a graph of a whole step, or of five, was no faster than the score's graph and
the step's arithmetic in PyTorch (within 10 % at one chain, nothing at 10 and above), and the score alone
serves every dynamics.  `export.fused` makes graphs with the steps inside, for other programs.

    x [batch, C, H, W] in [0, 1]  ->  <network>: score [batch, C, H, W]
                                      classifier: logits [batch, classes]
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import onnx
import torch
from onnx import compose
from torch import Tensor, nn

from export.tidy import encode, tidy
from metastable.bundle import Bundle
from metastable.engine.runners.exported import CLASSIFIER
from metastable.networks.onnx_classifier import OnnxClassifier

OPSET = 20
INPUT, SCORE, LOGITS = "x", "score", "logits"
BATCH = torch.export.Dim("batch", min=1, max=65536)
MEANINGS = {
    INPUT: "images in [0, 1], or states of chains in the same unit",
    SCORE: "grad log p at x; that of a ScoreNetwork times sigma^2",
    LOGITS: "one a class, in the order of the bundle's class names",
    "noise": "standard normal",
    "tau": "Langevin step in [0, 1] units; above 0",
    "sigma": "noise that ADP injects, in [0, 1] units; 0 injects none",
    "fraction": "ADP's lambda, in (0, 1]",
    "low": "least step size of ADP; above 0",
    "high": "greatest step size of ADP; at least low",
    "stop": "norm of the score below which a chain of ADP stops; 0 never stops",
    "y": "states after the steps, in the unit of x",
    "moved": "updates that each chain of ADP took",
}
"""What inputs and outputs of graphs hold, by name; the graphs say it themselves."""
_BROUGHT = "brought_"


class Scored(nn.Module):
    """A purifying network's score as a module's forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network.score(x)  # type: ignore[operator]
        return out


def modules(bundle: Bundle) -> dict[str, nn.Module]:
    """What is exported of a bundle as forward passes, by the names that runners know.

    A classifier that came as an ONNX graph is no module to export: it is not among them.
    """
    made: dict[str, nn.Module] = {name: Scored(network) for name, network in bundle.networks.items()}
    if not isinstance(bundle.classifier, OnnxClassifier):
        made[CLASSIFIER] = bundle.classifier
    return made


def build(bundle: Bundle) -> dict[str, bytes]:
    """The bundle's ONNX graphs by name; equal bundles give equal bytes."""
    made = {name: export(module, bundle.shape, output(name)) for name, module in modules(bundle).items()}
    if isinstance(bundle.classifier, OnnxClassifier):
        made[CLASSIFIER] = brought(bundle.classifier, bundle.shape[1:])
    return made


def output(name: str) -> str:
    """What the graph of this name returns is called."""
    return LOGITS if name == CLASSIFIER else SCORE


def brought(classifier: OnnxClassifier, size: tuple[int, int]) -> bytes:
    """A classifier that came as a graph, for images [batch, C, *size] in [0, 1], under our names.

    It keeps the opset that it came with.
    """
    model = onnx.load_from_string(classifier.whole_graph(size))
    # Names inside are the owner's and may be ours too.
    model = compose.add_prefix(model, _BROUGHT)
    held = {one.name for one in model.graph.initializer}
    [image] = [one for one in model.graph.input if one.name not in held]
    renamed = {image.name: INPUT, model.graph.output[0].name: LOGITS}
    image.name, model.graph.output[0].name = INPUT, LOGITS
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    return checked(model)


def export(module: nn.Module, shape: tuple[int, int, int], output: str, opset: int = OPSET) -> bytes:
    """One module of images of `shape` as an ONNX model of any batch size, checked by onnx.checker."""
    # Two rows: torch.export takes a batch of one for a constant.
    example = torch.rand(2, *shape)
    return traced(module, {INPUT: (example, {0: BATCH})}, [output], opset)


def traced(
    module: nn.Module,
    inputs: dict[str, tuple[Tensor, dict[int, Any]]],
    outputs: Sequence[str],
    opset: int = OPSET,
) -> bytes:
    """A module as an ONNX model; `inputs` are examples and dynamic axes, by names in the module's order."""
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(axes for _, axes in inputs.values()),
            verbose=False,
        )
    assert program is not None
    return checked(program.model_proto)


def checked(model: onnx.ModelProto) -> bytes:
    """The model's bytes, tidy and with MEANINGS; raises onnx.checker's error if it does not pass."""
    model = tidy(model)
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = MEANINGS.get(value.name, "")
    data = encode(model)
    onnx.checker.check_model(data, full_check=True)
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk of torchvision, which is not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch's own use of its pytree
            # Inputs share their batch, whose name is then used once.
            warnings.filterwarnings("ignore", ".*The axis name: batch", UserWarning)
            yield
    finally:
        logger.setLevel(level)
