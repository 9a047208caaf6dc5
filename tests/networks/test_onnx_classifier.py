import copy
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from metastable.attacks.pgd import pgd
from metastable.engine.runners.onnx_runner import OnnxRunner
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import BundleError, NoGradient
from metastable.networks import onnx_classifier
from metastable.networks.onnx_classifier import OnnxClassifier

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def graph(
    size: int | None = 8,
    batch: int | str = "batch",
    nodes: list[Any] | None = None,
    **model: Any,
) -> onnx.ModelProto:
    """Mean over pixels, then a linear layer: logits [batch, 4] of images [batch, 3, size, size]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])
    body = nodes or [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    weights = [numpy_helper.from_array(WEIGHTS, "w")]
    made = helper.make_graph(body, "g", [x], [y], weights)
    return helper.make_model(
        made, **{"opset_imports": [helper.make_opsetid("", 18)], "ir_version": 10} | model
    )


def made(proto: onnx.ModelProto, size: tuple[int, int] = (8, 8)) -> OnnxClassifier:
    return OnnxClassifier(proto.SerializeToString(), size=size, mean=MEAN, std=STD, file="it.onnx")


def expected(x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x - mean) / std).mean((2, 3)) @ torch.from_numpy(WEIGHTS)


def test_it_normalises_and_runs_any_batch() -> None:
    network = made(graph())
    for n in (1, 2, 7):
        x = torch.rand(n, 3, 8, 8)
        torch.testing.assert_close(network(x), expected(x))
        torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), expected(x))


def test_images_of_another_size_are_resized_with_antialiasing() -> None:
    network = made(graph(size=None))
    x = torch.rand(2, 3, 32, 32)
    small = F.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(x), expected(small))


def test_it_goes_to_another_process_with_a_session_of_its_own() -> None:
    network = made(graph()).eval()
    there = pickle.loads(pickle.dumps(network))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(there(x), network(x))
    assert there._session is not network._session
    assert not there.training


def test_a_runner_takes_it_in_both_precisions() -> None:
    network = made(graph())
    assert copy.deepcopy(network) is network
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(TorchRunner({}, network).classify(x), expected(x))
    low = TorchRunner({}, network, precision="bf16").classify(x)
    torch.testing.assert_close(low, expected(x), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("image", "size"), [((8, 8), (8, 8)), ((32, 32), (8, 8)), ((8, 8), (12, 12)), ((9, 20), (6, 8))]
)
def test_the_whole_graph_computes_the_same(image: tuple[int, int], size: tuple[int, int]) -> None:
    network = made(graph(size=None), size=size)
    x = torch.rand(5, 3, *image)
    whole = network.whole_graph(image)
    torch.testing.assert_close(OnnxRunner({"classifier": whole}).classify(x), network(x))
    assert whole == network.whole_graph(image)


def test_an_attack_is_told_that_there_is_no_gradient() -> None:
    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(NoGradient, match="differentiate its conversion"):
        pgd(made(graph()), x, torch.zeros(2, dtype=torch.int64), steps=1)


def test_a_graph_that_fails_says_which() -> None:
    reshape = [
        helper.make_node("Constant", [], ["to"], value_ints=[7, 4]),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    with pytest.raises(BundleError, match=r"it\.onnx failed on images \[1, 3, 8, 8\]"):
        made(graph(nodes=reshape))(torch.rand(1, 3, 8, 8))


def with_subgraph() -> onnx.ModelProto:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    return graph(nodes=[helper.make_node("If", ["w"], ["y"], then_branch=branch, else_branch=branch)])


def with_external_data() -> onnx.ModelProto:
    proto = graph()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    return proto


def with_external_constant() -> onnx.ModelProto:
    proto = with_external_data()
    tensor = proto.graph.initializer[0]
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.append(helper.make_attribute("value", tensor))
    proto.graph.node.insert(0, constant)
    del proto.graph.initializer[:]
    return proto


def with_function() -> onnx.ModelProto:
    function = helper.make_function(
        "own", "f", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    return graph(functions=[function])


def with_two_inputs() -> onnx.ModelProto:
    proto = graph()
    proto.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    return proto


def of_type(kind: int) -> onnx.ModelProto:
    proto = graph()
    proto.graph.input[0].type.tensor_type.elem_type = kind
    return proto


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_subgraph, "If holds a graph"),
        (with_external_data, "weights in another file"),
        (with_external_constant, "weights in another file"),
        (with_function, "functions"),
        (with_two_inputs, "one input"),
        (lambda: of_type(TensorProto.UINT8), "float32"),
        (lambda: graph(batch=1), "dynamic batch axis"),
        (lambda: graph(size=16), r"takes \[batch"),
        (
            lambda: graph(nodes=[helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]),
            "com.microsoft",
        ),
        (lambda: graph(nodes=[helper.make_node("RandomNormalLike", ["x"], ["y"])]), "random numbers"),
        (lambda: graph(nodes=[helper.make_node("NoSuchOperator", ["x"], ["y"])]), "onnx.checker"),
        (lambda: graph(nodes=[helper.make_node("Relu", ["missing"], ["y"])]), "onnx.checker"),
        (lambda: graph(nodes=[helper.make_node("MatMul", ["x", "w"], ["y"])]), "refused by ONNX Runtime"),
        (lambda: graph(opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]), "own"),
    ],
)
def test_graphs_that_are_refused(make: Callable[[], onnx.ModelProto], message: str) -> None:
    with pytest.raises(BundleError, match=r"it\.onnx.*" + message):
        made(make())


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"ORTM" * 20, bytes(100), b"\x08\x0a" * 50])
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"it\.onnx"):
        OnnxClassifier(data, size=(8, 8), mean=MEAN, std=STD, file="it.onnx")


def test_too_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_classifier, "NODES", 2)
    with pytest.raises(BundleError, match="more than 2 nodes"):
        made(graph())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match="needs the package onnxruntime"):
        made(graph())


def test_truncated_graphs_are_refused_or_whole() -> None:
    raw = graph().SerializeToString()
    x = torch.rand(2, 3, 8, 8)
    for cut in range(0, len(raw), 7):
        try:
            logits = OnnxClassifier(raw[:cut], size=(8, 8), mean=MEAN, std=STD, file="it.onnx")(x)
        except BundleError:
            continue
        assert logits.shape[0] == 2
        assert math.isfinite(float(logits.sum()))
