"""A bundle as ONNX graphs: the score of each network, and the classifier.

The dynamics stay outside: a graph of a whole step, or of five, was no faster than the score's graph and
the step's arithmetic in PyTorch (within 10 % at one chain, nothing at 10 and above), and the score alone
serves every dynamics.

    x [batch, C, H, W] in [0, 1]  ->  <network>: score [batch, C, H, W]
                                      classifier: logits [batch, classes]
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import onnx
import torch
from torch import Tensor, nn

from metastable.bundle import Bundle
from metastable.engine.runners.exported import CLASSIFIER

OPSET = 20
INPUT = "x"
BATCH = torch.export.Dim("batch", min=1, max=65536)


class Scored(nn.Module):
    """A purifying network's score as a module's forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network.score(x)  # type: ignore[operator]
        return out


def modules(bundle: Bundle) -> dict[str, tuple[nn.Module, str]]:
    """What is exported of a bundle, by the names that runners know: a module, and what it returns."""
    scores: dict[str, tuple[nn.Module, str]] = {k: (Scored(n), "score") for k, n in bundle.networks.items()}
    return scores | {CLASSIFIER: (bundle.classifier, "logits")}


def build(bundle: Bundle) -> dict[str, bytes]:
    """The bundle's ONNX graphs by name; equal bundles give equal bytes."""
    return {name: export(module, bundle.shape, output) for name, (module, output) in modules(bundle).items()}


def export(module: nn.Module, shape: tuple[int, int, int], output: str) -> bytes:
    """One module of images of `shape` as an ONNX model of any batch size, checked by onnx.checker."""
    # Two rows: torch.export takes a batch of one for a constant.
    example = torch.rand(2, *shape)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: BATCH},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _strip(model: onnx.ModelProto) -> None:
    """Take out what names this machine or run: stack traces and documentation."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk of torchvision, which is not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch's own use of its pytree
            yield
    finally:
        logger.setLevel(level)
