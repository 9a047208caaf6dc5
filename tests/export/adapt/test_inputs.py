from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose
from onnx import TensorProto

from metastable.errors import BundleError
from metastable.networks.onnx_classifier import OnnxClassifier, check_graph
from tests.export.adapt.graphs import (
    BIAS,
    WEIGHTS,
    adapted,
    classifier,
    expected,
    log_softmax,
    logits,
    node,
    noise,
    said,
)

TURN = node("Transpose", "x", "planes", perm=[0, 3, 1, 2])
FLOAT16, UINT8 = TensorProto.FLOAT16, TensorProto.UINT8


def test_it_passes_as_the_graph_of_a_bundle() -> None:
    found = adapted(
        classifier(node("Softmax", "z", "y", axis=1), front=[TURN], shape=(1, 8, 8, 3), pixels="planes")
    )
    check_graph(found.graph, channels=3, size=(8, 8), file="it.onnx")
    network = OnnxClassifier(found.graph, size=(8, 8), mean=found.mean, std=found.std)
    x = noise(found)
    assert_allclose(
        log_softmax(network(torch.from_numpy(x)).numpy()), log_softmax(expected(x)), rtol=1e-4, atol=1e-4
    )


def test_channels_last_are_transposed() -> None:
    found = adapted(classifier(front=[TURN], shape=("n", 6, 8, 3), pixels="planes"))
    assert (found.channels, found.height, found.width) == (3, 6, 8)
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)
    assert "NHWC" in said(found)


def test_bgr_is_turned_round_where_it_is_wished() -> None:
    found = adapted(classifier(), order="bgr")
    x = noise(found)
    assert_allclose(logits(found, x), expected(x[:, ::-1]), rtol=1e-5, atol=1e-5)
    assert "order" not in found.undecided
    assert "BGR" in said(found)
    assert "order" in adapted(classifier()).undecided
    assert "order" not in adapted(classifier(), order="rgb").undecided
    both = adapted(classifier(front=[TURN], shape=("n", 8, 8, 3), pixels="planes"), order="bgr")
    assert_allclose(logits(both, x), expected(x[:, ::-1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limits", [(0.0, 255.0), (0.0, 1.0), (-1.0, 1.0)])
def test_a_range_that_is_wished(limits: tuple[float, float]) -> None:
    found = adapted(classifier(), range=limits)
    x = noise(found)
    low, high = limits
    assert_allclose(logits(found, x), expected(x * (high - low) + low), rtol=1e-4, atol=1e-3)
    assert "range" not in found.undecided
    assert "range" in adapted(classifier()).undecided
    with pytest.raises(BundleError, match="the lower first"):
        adapted(classifier(), range=(1.0, 0.0))


def scaled(*steps: tuple[str, Any]) -> onnx.ModelProto:
    """A graph that scales its images itself."""
    nodes, held, name = [], {}, "x"
    for number, (operator, value) in enumerate(steps):
        held[f"c{number}"] = np.asarray(value, np.float32)
        nodes.append(node(operator, f"{name} c{number}", f"s{number}"))
        name = f"s{number}"
    return classifier(front=nodes, held=held, pixels=name)


MEANS, STDS = np.array([0.4, 0.5, 0.6]).reshape(3, 1, 1), np.array([0.2, 0.2, 0.3]).reshape(3, 1, 1)


@pytest.mark.parametrize(
    ("steps", "limits", "seen"),
    [
        ([("Div", 255)], 255, True),
        ([("Mul", 1 / 255), ("Sub", MEANS), ("Div", STDS)], 255, True),
        ([("Sub", 255 * MEANS), ("Div", 255 * STDS)], 255, True),
        ([("Sub", MEANS), ("Div", STDS)], 1, True),
        ([("Mul", 2), ("Sub", 1)], 1, True),
        ([("Mul", 2)], 1, False),
    ],
)
def test_scaling_inside_is_seen(steps: Sequence[tuple[str, Any]], limits: float, seen: bool) -> None:
    found = adapted(scaled(*steps))
    assert found.std == (1 / limits,) * 3
    assert ("normalization" not in found.undecided, "range" not in found.undecided) == (seen, seen)
    assert ("scales its images itself" in said(found)) == seen
    x = noise(found)
    pixels = x * limits
    for operator, value in steps:
        pixels = {"Div": np.divide, "Mul": np.multiply, "Sub": np.subtract}[operator](pixels, value)
    assert_allclose(logits(found, x), expected(pixels), rtol=1e-4, atol=1e-3)


def test_whole_numbers_that_are_cast_first_are_given_as_floats() -> None:
    front = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Div", "f full", "p")]
    model = classifier(front=front, kind=UINT8, held={"full": np.float32(255)}, pixels="p")
    found = adapted(model)
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-4, atol=1e-4)
    assert (found.mean, found.std) == ((0,) * 3, (1 / 255,) * 3)
    assert found.undecided == ("order",)


def test_whole_numbers_that_are_computed_with_are_rounded() -> None:
    front = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("DequantizeLinear", "t scale zero", "p"),
    ]
    held = {"scale": np.float32(1 / 255), "zero": np.uint8(0)}
    found = adapted(classifier(front=front, shape=("n", 8, 8, 3), kind=UINT8, held=held, pixels="p"))
    x = noise(found)
    assert_allclose(logits(found, x), expected(np.floor(x * 255 + 0.5) / 255), rtol=1e-4, atol=1e-4)
    assert "rounded" in said(found)


@pytest.mark.parametrize(("kind", "name"), [(FLOAT16, "float16"), (TensorProto.DOUBLE, "float64")])
def test_other_floats_are_cast(kind: int, name: str) -> None:
    found = adapted(classifier(front=[node("Cast", "x", "p", to=TensorProto.FLOAT)], kind=kind, pixels="p"))
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=2e-3, atol=2e-3)
    assert name in said(found)


def test_float16_weights_with_float32_ends() -> None:
    half = [node("Cast", "x", "h", to=FLOAT16), node("Mul", "h two", "t"), node("Cast", "t", "p", to=1)]
    found = adapted(classifier(front=half, held={"two": np.float16(2)}, pixels="p"))
    x = noise(found)
    assert_allclose(logits(found, x), expected(2 * x), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.STRING, TensorProto.BOOL])
def test_types_that_hold_no_images(kind: int) -> None:
    front = [] if kind == TensorProto.STRING else [node("Cast", "x", "p", to=1)]
    with pytest.raises(BundleError, match="of a type that holds no images here"):
        adapted(classifier(front=front, kind=kind, pixels="p" if front else "x"))


@pytest.mark.parametrize(
    ("shape", "height", "width"),
    [(("n", 3, 48, 64), 48, 64), (("n", 3, 96, 96), 96, 96), (("n", 3, None, 40), 40, 40)],
)
def test_sizes_that_are_declared(shape: Sequence[Any], height: int, width: int) -> None:
    found = adapted(classifier(shape=shape))
    assert (found.height, found.width) == (height, width)
    assert "size" not in found.undecided
    with pytest.raises(BundleError, match=rf"not {height + 1} x {width + 1}"):
        adapted(classifier(shape=shape), size=(height + 1, width + 1))


def test_a_size_that_is_left_open_is_wished_or_asked_for() -> None:
    model = classifier(shape=("n", 3, "height", "width"))
    found = adapted(model)
    assert (found.height, found.width) == (224, 224)
    assert "size" in found.undecided
    assert "any height and width" in said(found)
    small = adapted(model, size=(20, 30))
    assert (small.height, small.width) == (20, 30)
    assert "size" not in small.undecided
    x = noise(small)
    assert_allclose(logits(small, x), expected(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(BundleError, match="1 to 1024"):
        adapted(model, size=(20, 2000))


def flattening(**changes: Any) -> onnx.ModelProto:
    """A graph that needs 3 x 32 x 32, whatever it declares."""
    held = {"to": np.array([-1, 3, 32, 32]), "row": np.array([-1, 3072])}
    front = [node("Reshape", "x row", "r"), node("Reshape", "r to", "p")]
    return classifier(front=front, pixels="p", held=held, **changes)


def test_an_open_size_that_the_graph_does_not_mean_is_found() -> None:
    found = adapted(flattening(shape=("n", 3, "h", "w")))
    assert (found.height, found.width) == (32, 32)
    assert "size" not in found.undecided
    for n in (1, 5):
        x = noise(found, n)
        assert_allclose(logits(found, x), expected(x), rtol=1e-4, atol=1e-4)


def gray(shape: Sequence[Any], *front: onnx.NodeProto, pixels: str = "x") -> onnx.ModelProto:
    nodes = [*front, node("Concat", f"{pixels} {pixels} {pixels}", "three", axis=1)]
    return classifier(front=nodes, shape=shape, pixels="three")


@pytest.mark.parametrize("shape", [("n", 1, 28, 28), ("n", 28, 28, 1)])
def test_gray_images(shape: Sequence[Any]) -> None:
    last = shape[-1] == 1
    found = adapted(gray(shape, TURN, pixels="planes") if last else gray(shape))
    assert (found.channels, found.height, found.width, found.mean) == (1, 28, 28, (0.0,))
    assert "order" not in found.undecided
    x = noise(found)
    assert_allclose(logits(found, x), expected(np.repeat(x, 3, 1)), rtol=1e-4, atol=1e-4)
    with pytest.raises(BundleError, match="no order of channels"):
        adapted(gray((1, 1, 28, 28)), order="bgr")


@pytest.mark.parametrize("shape", [("n", 4, 8, 8), ("n", 8, 8, 4)])
def test_rgba_is_refused_with_a_word_about_alpha(shape: Sequence[Any]) -> None:
    held = {"first": np.array([0, 1, 2])}
    front = [node("Gather", "x first", "p", axis=1 if shape[1] == 4 else 3)]
    with pytest.raises(BundleError, match=r"4 channels.*alpha.*3 channels"):
        adapted(classifier(front=front, shape=shape, held=held, pixels="p"))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("n", 5, 8, 8), "1 or 3 channels"),
        ((3, 8, 8), "input of 3 axes"),
        (("n", 3, 4, 8, 8), "input of 5 axes"),
        (("n", 50), "no square image"),
    ],
)
def test_shapes_that_are_no_images(shape: Sequence[Any], message: str) -> None:
    front = [node("ReduceMean", "x", "m", keepdims=0), node("Reshape", "m to", "p")]
    with pytest.raises(BundleError, match=message):
        adapted(classifier(front=front, shape=shape, held={"to": np.array([1, 1, 1, 1])}, pixels="p"))


def test_open_channels_are_found_by_trying() -> None:
    convolution = node("Conv", "x kernel", "p")
    held = {"kernel": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)}
    found = adapted(classifier(front=[convolution], shape=("n", None, 8, 8), held=held, pixels="p"))
    assert found.channels == 3
    ones = {"kernel": np.ones((3, 1, 1, 1), np.float32)}
    found = adapted(classifier(front=[convolution], shape=("n", None, 8, 8), held=ones, pixels="p"))
    assert found.channels == 1


def test_the_layout_that_is_wished_decides() -> None:
    model = classifier(front=[TURN], shape=("n", 3, 8, 3), pixels="planes")
    found = adapted(model, layout="nhwc")
    assert (found.height, found.width) == (3, 8)
    with pytest.raises(BundleError, match="as nhwc: images of 1 or 3"):
        adapted(classifier(), layout="nhwc")


@pytest.mark.parametrize("layout", [None, "nchw"])
def test_rows_of_pixels(layout: Any) -> None:
    last = layout is None
    held = {"to": np.array([-1, 6, 6, 3] if last else [-1, 3, 6, 6])}
    front = [
        node("Reshape", "x to", "r"),
        node("Transpose", "r", "p", perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]),
    ]
    found = adapted(classifier(front=front, shape=("n", 108), held=held, pixels="p"), layout=layout)
    assert (found.channels, found.height, found.width) == (3, 6, 6)
    assert ("layout" in found.undecided) == last
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-4, atol=1e-4)


def test_several_inputs_are_refused_by_name() -> None:
    model = classifier(node("Mul", "z more", "y"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(BundleError, match=r"2 inputs \('x', 'more'\)"):
        adapted(model)


def test_initialisers_among_the_inputs_are_no_inputs() -> None:
    model = classifier()
    model.ir_version = 3
    for name, value in (("weights", WEIGHTS), ("bias", BIAS)):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    found = adapted(model)
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)
