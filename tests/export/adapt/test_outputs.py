from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto

from metastable.errors import BundleError
from tests.export.adapt.graphs import (
    BIAS,
    CLASSES,
    WEIGHTS,
    adapted,
    classifier,
    expected,
    log_softmax,
    logits,
    node,
    noise,
    run,
    said,
)


def test_logits_stay_as_they_are() -> None:
    found = adapted(classifier())
    assert (found.channels, found.height, found.width, found.classes) == (3, 8, 8, CLASSES)
    assert found.changes == ()
    for n in (1, 2, 5):
        x = noise(found, n)
        assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)


SOFTMAXES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "node": ([node("Softmax", "z", "y", axis=1)], {}),
    "default axis of opset 9": ([node("Softmax", "z", "y")], {"opset": 9}),
    "last axis": ([node("Softmax", "z", "y", axis=-1)], {"opset": 13}),
    "log and exp": ([node("LogSoftmax", "z", "l"), node("Exp", "l", "y")], {}),
    "written out": (
        [
            node("ReduceMax", "z axis", "top"),
            node("Sub", "z top", "shifted"),
            node("Exp", "shifted", "e"),
            node("ReduceSum", "e axis", "sum"),
            node("Div", "e sum", "y"),
        ],
        {"held": {"axis": np.array([1])}},
    ),
    "reciprocal": (
        [
            node("Exp", "z", "e"),
            node("ReduceSum", "e axis", "sum"),
            node("Reciprocal", "sum", "r"),
            node("Mul", "e r", "y"),
        ],
        {"held": {"axis": np.array([1])}},
    ),
    "before a reshape": (
        [node("Softmax", "z", "s"), node("Identity", "s", "i"), node("Reshape", "i to", "y")],
        {"held": {"to": np.array([-1, CLASSES, 1, 1])}},
    ),
    "channels last": (
        [
            node("Reshape", "z to", "four"),
            node("Transpose", "four", "last", perm=[0, 2, 3, 1]),
            node("Softmax", "last", "y", axis=3),
        ],
        {"held": {"to": np.array([-1, CLASSES, 1, 1])}},
    ),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_what_goes_into_a_softmax_is_taken(name: str) -> None:
    ends, changes = SOFTMAXES[name]
    found = adapted(classifier(*ends, **changes))
    x = noise(found)
    assert_allclose(log_softmax(logits(found, x)), log_softmax(expected(x)), rtol=1e-4, atol=1e-4)
    assert "ends with a softmax" in said(found)
    assert "Log" not in {one.op_type for one in onnx.load_from_string(found.graph).graph.node}


def test_a_softmax_over_the_wrong_axis_is_not_cut() -> None:
    # Over a batch it would be no probabilities of an image, and depend on its neighbours.
    with pytest.raises(BundleError, match="beside other images"):
        adapted(classifier(node("Softmax", "z", "y", axis=0)))


def test_of_other_probabilities_the_logarithm_is_taken_with_a_floor() -> None:
    ends = [node("Relu", "z", "r"), node("ReduceSum", "r axis", "s"), node("Div", "r s", "y")]
    found = adapted(classifier(*ends, held={"axis": np.array([1])}))
    x = noise(found)
    positive = np.maximum(expected(x), 0)
    p = positive / positive.sum(1, keepdims=True)
    assert (p == 0).any()
    assert_allclose(logits(found, x), np.log(np.maximum(p, 1e-7)), rtol=1e-4, atol=1e-4)
    assert "logarithm" in said(found)


def test_a_log_softmax_is_kept() -> None:
    found = adapted(classifier(node("LogSoftmax", "z", "y", axis=1)))
    x = noise(found)
    assert_allclose(logits(found, x), log_softmax(expected(x)), rtol=1e-4, atol=1e-4)
    assert "log-softmax" in said(found)


@pytest.mark.parametrize(
    "ends",
    [
        [node("Sigmoid", "z", "y")],
        [node("Neg", "z", "n"), node("Exp", "n", "e"), node("Add", "e one", "d"), node("Div", "one d", "y")],
        [
            node("Neg", "z", "n"),
            node("Exp", "n", "e"),
            node("Add", "one e", "d"),
            node("Reciprocal", "d", "y"),
        ],
    ],
)
def test_a_sigmoid_of_several_labels_is_refused_with_what_is_possible(ends: list[onnx.NodeProto]) -> None:
    model = classifier(*ends, held={"one": np.float32(1)})
    with pytest.raises(BundleError, match=r"10 labels a probability of its own.*--output 'z'.*one network"):
        adapted(model)
    found = adapted(model, output="z")
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)


ONE = {"w1": WEIGHTS[:, :1], "b1": BIAS[:1], "row": np.array([-1])}
LOGIT = node("Gemm", "colours w1 b1", "z1")
SIGMOID = node("Sigmoid", "z1", "p")


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        ([LOGIT, node("Identity", "z1", "y")], "one number"),
        ([LOGIT, node("Reshape", "z1 row", "y")], "one number"),
        ([LOGIT, SIGMOID, node("Identity", "p", "y")], "sigmoid"),
        ([LOGIT, SIGMOID, node("Reshape", "p row", "y")], "sigmoid"),
    ],
    ids=["[N, 1]", "[N]", "sigmoid [N, 1]", "sigmoid [N]"],
)
def test_one_logit_becomes_two_classes(ends: list[onnx.NodeProto], sentence: str) -> None:
    found = adapted(classifier(*ends, held=ONE))
    assert found.classes == 2
    x = noise(found)
    z = expected(x)[:, :1]
    assert_allclose(logits(found, x), np.concatenate([0 * z, z], 1), rtol=1e-5, atol=1e-5)
    assert sentence in said(found)
    assert "two classes" in said(found)


def test_one_probability_without_a_logit_becomes_two() -> None:
    found = adapted(classifier(LOGIT, node("HardSigmoid", "z1", "y"), held=ONE))
    x = noise(found)
    p = np.clip(expected(x)[:, :1] * 0.2 + 0.5, 0, 1)
    both = np.concatenate([1 - p, p], 1)
    assert_allclose(logits(found, x), np.log(np.maximum(both, 1e-7)), rtol=1e-4, atol=1e-4)


def test_the_last_axes_are_squeezed() -> None:
    found = adapted(classifier(node("Unsqueeze", "z axes", "y"), held={"axes": np.array([2, 3])}))
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)
    assert "[batch, 10, 1, 1]: it becomes [batch, 10]" in said(found)


def test_a_squeeze_that_drops_a_batch_of_one_is_mended() -> None:
    found = adapted(
        classifier(
            node("Unsqueeze", "z axes", "u"), node("Squeeze", "u", "y"), held={"axes": np.array([2, 3])}
        )
    )
    for n in (1, 5):
        x = noise(found, n)
        assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)


def test_of_several_outputs_one_is_named() -> None:
    model = classifier(node("Relu", "z", "a"), node("Neg", "z", "b"), outputs=("a", "b"))
    with pytest.raises(BundleError, match=r"--output .*'a' float32 \[5, 10\], 'b' float32 \[5, 10\]"):
        adapted(model)
    found = adapted(model, output="b")
    x = noise(found)
    assert_allclose(logits(found, x), -expected(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(BundleError, match=r"no value 'zz': its outputs are 'a', 'b'.*like it are 'z'"):
        adapted(model, output="zz")


def test_the_only_output_that_can_be_logits_is_taken_and_said() -> None:
    model = classifier(
        node("ArgMax", "z", "label", axis=1), node("Identity", "z", "y"), outputs=("label", "y")
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    found = adapted(model)
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)
    assert "'y' is taken: no other output can be logits ('label')" in said(found)


def test_of_logits_and_their_probabilities_the_logits_are_taken() -> None:
    model = classifier(node("Softmax", "z", "p", axis=1), node("Identity", "z", "y"), outputs=("p", "y"))
    found = adapted(model)
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)
    assert "'y' is taken" in said(found)
    assert "softmax" not in said(found)


@pytest.mark.parametrize(
    ("ends", "kind", "named"),
    [
        ([node("ArgMax", "z", "y", axis=1, keepdims=0)], TensorProto.INT64, "ArgMax.*'z' goes into it"),
        (
            [node("ArgMax", "z", "i", axis=1), node("Cast", "i", "y", to=TensorProto.FLOAT)],
            TensorProto.FLOAT,
            "ArgMax",
        ),
        ([node("TopK", "z k", "y ignored", axis=1)], TensorProto.FLOAT, "TopK"),
    ],
)
def test_class_numbers_are_refused_and_the_logits_named(
    ends: list[onnx.NodeProto], kind: int, named: str
) -> None:
    model = classifier(*ends, made=kind, held={"k": np.array([3])})
    with pytest.raises(BundleError, match=named + ".*--output 'z'"):
        adapted(model)
    found = adapted(model, output="z")
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)


def test_values_for_each_pixel_are_refused() -> None:
    with pytest.raises(BundleError, match=r"no row of logits.*'y' float32 \[5, 3, 8, 8\].*segmenters"):
        adapted(classifier(node("Relu", "x", "y")))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_floats_are_cast(kind: int) -> None:
    found = adapted(classifier(node("Cast", "z", "y", to=kind), made=kind))
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=2e-3, atol=2e-3)
    assert "cast to float32" in said(found)


def test_21841_classes() -> None:
    many = np.random.default_rng(2).normal(size=(3, 21841)).astype(np.float32)
    found = adapted(classifier(node("MatMul", "colours many", "y"), held={"many": many}))
    assert found.classes == 21841
    x = noise(found, 2)
    assert_allclose(logits(found, x), x.mean((2, 3)) @ many, rtol=1e-4, atol=1e-4)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BundleError, match="not finite"):
        adapted(classifier(node("Neg", "x", "n"), node("ReduceMean", "n axes", "m", keepdims=0),
                           node("Log", "m", "l"), node("Concat", "l l", "y", axis=1),
                           held={"axes": np.array([2, 3])}))  # fmt: skip


def test_equal_graphs_give_equal_bytes() -> None:
    model = classifier(node("Softmax", "z", "y", axis=1))
    assert adapted(model).graph == adapted(model).graph
    assert run(adapted(model).graph, np.zeros((3, 3, 8, 8), np.float32)).shape == (3, CLASSES)


def test_sentences_fit_into_the_provenance_of_a_bundle() -> None:
    ends = [node("ArgMax", "z", f"label{'x' * 70}{i}", axis=1) for i in range(8)]
    model = classifier(*ends, node("Identity", "z", "y"), outputs=(*(one.output[0] for one in ends), "y"))
    for one in model.graph.output[:-1]:
        one.type.tensor_type.elem_type = TensorProto.INT64
    found = adapted(model)
    assert any("'y' is taken" in one for one in found.changes)
    assert all(len(one) <= 200 and one.isprintable() for one in found.changes)


@pytest.mark.parametrize("column", [1, 0])
def test_one_probability_cut_out_of_a_softmax_is_no_logit(column: int) -> None:
    """Were it taken for one, every image would get the second class."""
    ends = [node("Softmax", "z", "p", axis=1), node("Gather", "p which", "y", axis=1)]
    found = adapted(classifier(*ends, held={"which": np.array([column])}))
    assert found.classes == 2
    x = noise(found)
    p = np.exp(expected(x) - expected(x).max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True))[:, column]
    assert_allclose(logits(found, x)[:, 1] - logits(found, x)[:, 0], np.log(p) - np.log1p(-p), atol=1e-3)
    assert "one probability" in said(found)
