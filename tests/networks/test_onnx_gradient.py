import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from metastable.errors import MissingPackage, NoGradient
from metastable.networks.classifier import WideResNet
from metastable.networks.compact import CompactResNet
from metastable.networks.onnx_gradient import PACKAGE, Differentiable
from tests.networks.brought import MEAN, STD, Separable, Vit, classifier, exported, seen

pytest.importorskip("onnx2fx")
SIZE = 16
WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    at = x.clone().requires_grad_(True)
    logits = network(at)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(len(x)) % 4, reduction="sum"), at)
    return logits.detach(), slope


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "wide": lambda: WideResNet(10, 1),
    "compact": lambda: CompactResNet(widths=(4, 6, 8)),
    "transformer": lambda: Vit(SIZE),
    "separable": Separable,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        ("wide", False),
        ("compact", False),
        ("transformer", False),
        ("transformer", True),
        ("separable", False),
    ],
)
def test_gradients_are_those_of_the_network_that_was_exported(
    name: str, dynamo: bool, images: Tensor
) -> None:
    torch.manual_seed(0)
    network = seen(NETWORKS[name](), SIZE)
    source = classifier(exported(network, SIZE, dynamo=dynamo), SIZE)
    converted = Differentiable(source, images)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def original(x: Tensor) -> Tensor:
        logits: Tensor = network((x - mean) / std)
        return logits

    for x in (images, images[:1], torch.rand(9, 3, SIZE, SIZE)):
        (wanted, slope), (found, its) = gradient(original, x), gradient(converted, x)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(found, source(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(its, slope, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # as the graph: in float32 whoever asks
        assert torch.equal(converted(images), converted.float()(images))
    assert not list(converted.parameters())


def test_gradients_go_through_the_resizing(images: Tensor) -> None:
    torch.manual_seed(0)
    network = seen(Separable(), 2 * SIZE)
    converted = Differentiable(classifier(exported(network, 2 * SIZE), 2 * SIZE), images)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def original(x: Tensor) -> Tensor:
        x = F.interpolate(x, (2 * SIZE, 2 * SIZE), mode="bilinear", antialias=True)
        logits: Tensor = network((x - mean) / std)
        return logits

    torch.testing.assert_close(gradient(converted, images)[1], gradient(original, images)[1])


def graph(*nodes: tuple[str, list[str], list[str], dict[str, Any]], opset: int = 18) -> onnx.ModelProto:
    """Operators between `f`, the mean colours [batch, 3] of an image, and `h`, of which logits are made."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    body = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        *(helper.make_node(kind, into, out, **given) for kind, into, out, given in nodes),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    held = {
        "w": WEIGHTS,
        "last": np.array([-1]),
        "many": np.float32(8),
        "scale": np.float32(0.01),
        "zero": np.int8(0),
    }
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    made = helper.make_graph(body, "g", [x], [y], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [
                ("Unsqueeze", ["f", "last"], ["u"], {}),
                ("DFT", ["u"], ["d"], {"axis": 1}),
                ("ReduceSum", ["d", "last"], ["h"], {"keepdims": 0}),
            ],
            r"does not convert to PyTorch: DFT \(opset 18\)",
        ),
        (
            [
                ("QuantizeLinear", ["f", "scale", "zero"], ["q"], {}),
                ("DequantizeLinear", ["q", "scale", "zero"], ["h"], {}),
            ],
            r"integers \(DequantizeLinear, QuantizeLinear\).*float32 graph that it was quantised from",
        ),
        ([("Round", ["f"], ["h"], {})], "zero everywhere"),
        (
            [("Greater", ["f", "scale"], ["b"], {}), ("Cast", ["b"], ["h"], {"to": TensorProto.FLOAT})],
            "no gradient: all of its paths go through integers",
        ),
        (
            # A finer staircase than the check's step, eight times as steep as the slope that is left.
            [
                ("Div", ["f", "scale"], ["big"], {}),
                ("Mul", ["big", "many"], ["bigger"], {}),
                ("Round", ["bigger"], ["whole"], {}),
                ("Mul", ["whole", "scale"], ["stairs"], {}),
                ("Add", ["stairs", "f"], ["h"], {}),
            ],
            r"answers move (8|9|\d\d)[.\d]* times as far",
        ),
    ],
    ids=["unsupported", "quantised", "rounded", "compared", "partly rounded"],
)
def test_graphs_without_a_gradient_are_refused(
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]], message: str, images: Tensor
) -> None:
    source = classifier(graph(*nodes), SIZE)
    assert source(images).shape == (5, 4)
    with pytest.raises(NoGradient, match=r"it\.onnx.*" + message + ".*") as refused:
        Differentiable(source, images)
    assert "bring the float32" in str(refused.value) or "attack a surrogate" in str(refused.value)


@pytest.fixture
def operators() -> Iterator[Any]:
    """The library's table of operators, as it was again afterwards."""
    import onnx2fx
    from onnx2fx.op_registry import registry_context

    with registry_context():
        yield onnx2fx.register_op


def test_a_conversion_that_differs_is_refused_with_the_number(operators: Any, images: Tensor) -> None:
    def wrong(builder: Any, node: Any) -> Any:
        return builder.call_function(lambda x: x * 1.01, args=(builder.get_value(node.input[0]),))

    operators("Identity", wrong)
    source = classifier(graph(("Identity", ["f"], ["h"], {})), SIZE)
    with pytest.raises(NoGradient, match=r"a logit is 0\.00\d+ of the largest one away.* 0\.0001 is allowed"):
        Differentiable(source, images)


def test_an_operator_that_fails_is_named(operators: Any, images: Tensor) -> None:
    def one_only(x: Tensor) -> Tensor:
        if len(x) != 1:
            raise RuntimeError("one image at a time")
        return x

    def fixed(builder: Any, node: Any) -> Any:
        return builder.call_function(one_only, args=(builder.get_value(node.input[0]),))

    operators("Identity", fixed)
    source = classifier(graph(("Identity", ["f"], ["h"], {})), SIZE)
    with pytest.raises(NoGradient, match=r"its Identity fails on 5 images \(cpu\): one image at a time"):
        Differentiable(source, images)


def test_names_of_a_graph_are_neither_code_nor_confused(images: Tensor) -> None:
    proto = graph(("Mul", ["f", "a.b"], ["h/1"], {}), ("Add", ["h/1", "a_b"], ["h"], {}))
    for name, value in (("a.b", 2.0), ("a_b", 0.5)):
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    evil = "x):\n    raise SystemExit\ndef f(y"
    proto.graph.input[0].name = proto.graph.node[0].input[0] = evil
    source = classifier(proto, SIZE)
    torch.testing.assert_close(Differentiable(source, images)(images), source(images))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    monkeypatch.setitem(sys.modules, "onnx2fx", None)
    with pytest.raises(MissingPackage, match=r"pip install --no-deps onnx2fx==0\.0\.1"):
        Differentiable(classifier(graph(("Identity", ["f"], ["h"], {})), SIZE), images)


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements.lock"])
def test_the_package_that_is_named_is_the_one_that_is_pinned(root: Path, name: str) -> None:
    assert PACKAGE in (root / name).read_text().splitlines()


@pytest.mark.slow
def test_a_server_does_not_import_the_package() -> None:
    code = "import sys, handlers.service, metastable.bundle; sys.exit('onnx2fx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
