from __future__ import annotations

import importlib.util

import onnx
import pytest
import torch

from export import tensorrt
from metastable.bundle import Bundle
from metastable.errors import BundleError, MissingPackage

pytestmark = pytest.mark.slow

needs_tensorrt = pytest.mark.skipif(tensorrt.missing() is not None, reason="TensorRT is not installed")


@needs_tensorrt
def test_every_graph_builds(tiny_graphs: dict[str, bytes], tiny_steps: dict[str, bytes]) -> None:
    for name, graph in (tiny_graphs | tiny_steps).items():
        assert len(tensorrt.build(graph, name)) > 1000


@needs_tensorrt
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["score", "energy", "classifier"])
def test_every_network_builds_below_float32(tiny: Bundle, precision: str, name: str) -> None:
    graph = tensorrt.graph_of(tiny, name, precision)
    model = onnx.load_from_string(graph)
    wanted = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[precision]
    largest = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    assert largest.data_type == wanted
    assert ("ConvTranspose" in {node.op_type for node in model.graph.node}) is (
        precision == "float16" and name != "classifier"
    )
    assert len(tensorrt.build(graph, name)) > 1000
    assert {p.dtype for p in tiny.classifier.parameters()} == {torch.float32}, "the bundle is left alone"


@needs_tensorrt
def test_a_graph_that_does_not_parse_is_named() -> None:
    with pytest.raises(BundleError, match="TensorRT does not parse nonsense"):
        tensorrt.build(b"nonsense", "nonsense")


def test_without_the_package_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install -r requirements-tensorrt\.txt"):
        tensorrt.build(b"", "x")
