"""Graphs as other people's tools write them."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose
from onnx import TensorProto
from torch import nn

from export.adapt import adapt
from metastable.errors import BundleError
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
from tests.networks.brought import Separable, Vit, exported, seen


@pytest.mark.parametrize("opset", range(9, 24))
def test_every_opset(opset: int) -> None:
    front = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Cast", "t", "p", to=TensorProto.FLOAT)]
    model = classifier(
        node("Softmax", "z", "y", axis=1), front=front, shape=(1, 8, 8, 3), kind=10, opset=opset, pixels="p"
    )
    model.ir_version = 10 if opset < 23 else 11
    found = adapted(model, order="bgr")
    x = noise(found)
    z = log_softmax(logits(found, x))
    assert_allclose(z, log_softmax(expected(x[:, ::-1])), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_a_plain_dynamo_export(tmp_path: Path) -> None:
    """`torch.onnx.export(model, images, file)`: one image, weights in a second file."""
    torch.manual_seed(0)
    module = nn.Sequential(seen(Separable(), 16), nn.Softmax(1)).eval()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.rand(1, 3, 16, 16),), path, verbose=False)
    assert (tmp_path / "model.onnx.data").exists()
    found = adapt(path)
    for n in (1, 2, 5):
        x = noise(found, n)
        with torch.no_grad():
            wanted = module[0](torch.from_numpy(x)).numpy()
        assert_allclose(logits(found, x), wanted, rtol=1e-4, atol=1e-4)
    assert "batches of 1" in said(found)
    assert "other files beside it" in said(found)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx\.data is missing"):
        adapt(path)


def optimised(graph: bytes, folder: Path, level: str) -> onnx.ModelProto:
    """The graph as ONNX Runtime saves it after its own optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


@pytest.mark.parametrize(("make", "operator"), [(Vit, "Gelu"), (Separable, "FusedConv")])
def test_a_graph_that_onnx_runtime_optimised(make: type[nn.Module], operator: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = seen(make(16) if make is Vit else nn.Sequential(make(), nn.Identity()), 16)
    graph = exported(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), module), 16)
    model = optimised(graph, tmp_path, "ORT_ENABLE_EXTENDED")
    assert any(operator in one.op_type and one.domain == "com.microsoft" for one in model.graph.node)
    found = adapt(model.SerializeToString())
    x = noise(found)
    assert_allclose(logits(found, x), logits(adapt(graph), x), rtol=1e-4, atol=1e-4)
    assert "com.microsoft, so there are no gradients" in said(found)


def test_a_graph_for_one_processor_is_refused(tmp_path: Path) -> None:
    model = classifier()
    model.graph.node.append(node("ReorderOutput", "z", "r", domain="com.microsoft.nchwc"))
    model.graph.output[0].name = "r"
    model.opset_import.add(domain="com.microsoft.nchwc", version=1)
    with pytest.raises(BundleError, match=r"one kind of processor.*ORT_ENABLE_EXTENDED"):
        adapted(model)


CLASSIC = [("ai.onnx.ml", 1)]


def linear(post: str) -> onnx.NodeProto:
    return node(
        "LinearClassifier", "colours", "label scores", domain="ai.onnx.ml", post_transform=post,
        multi_class=1, coefficients=WEIGHTS.T.reshape(-1).tolist(), intercepts=BIAS.tolist(),
        classlabels_ints=list(range(10)),
    )  # fmt: skip


@pytest.mark.parametrize("ends", ["maps", "tensor", "scores"])
def test_classifiers_of_scikit_learn(ends: str) -> None:
    rest = {
        "maps": [
            node("Normalizer", "scores", "p", domain="ai.onnx.ml", norm="L1"),
            node("ZipMap", "p", "y", domain="ai.onnx.ml", classlabels_int64s=list(range(10))),
        ],
        "tensor": [node("Normalizer", "scores", "y", domain="ai.onnx.ml", norm="L1")],
        "scores": [node("Identity", "scores", "y")],
    }[ends]
    post = "NONE" if ends == "scores" else "SOFTMAX"
    model = classifier(linear(post), *rest, outputs=("label", "y"), domains=CLASSIC)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    found = adapted(model)
    x = noise(found)
    wanted = expected(x)
    if ends != "scores":
        wanted = np.maximum(log_softmax(wanted), np.log(1e-7))
    assert_allclose(logits(found, x), wanted, rtol=1e-3, atol=1e-3)
    assert "ai.onnx.ml, so there are no gradients" in said(found)


def test_class_numbers_of_scikit_learn_are_refused() -> None:
    model = classifier(linear("NONE"), outputs=("label",), domains=CLASSIC)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(BundleError, match="LinearClassifier, which leaves class numbers"):
        adapted(model)
    assert adapted(model, output="scores").classes == 10


def test_trees_and_rows_of_pixels() -> None:
    """A tree on rows of 4 numbers, images of 2 x 2: it asks whether the first is bright."""
    tree = node(
        "TreeEnsembleClassifier", "x", "label p", domain="ai.onnx.ml", post_transform="NONE",
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_hitrates=[1.0] * 3, nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], nodes_missing_value_tracks_true=[0, 0, 0],
        class_treeids=[0] * 4, class_nodeids=[1, 1, 2, 2], class_ids=[0, 1, 0, 1],
        class_weights=[0.9, 0.1, 0.0, 1.0],
        classlabels_int64s=[0, 1],
    )  # fmt: skip
    model = classifier(tree, shape=("n", 4), outputs=("p",), domains=CLASSIC)
    del model.graph.node[:3]
    found = adapted(model)
    assert (found.channels, found.height, found.width, found.classes) == (1, 2, 2, 2)
    x = np.zeros((2, 1, 2, 2), np.float32)
    x[1, 0, 0, 0] = 1
    assert_allclose(np.exp(logits(found, x)), [[0.9, 0.1], [1e-7, 1]], rtol=1e-4, atol=1e-6)


def test_an_operator_that_is_not_on_the_list_is_named() -> None:
    model = classifier(node("Inverse", "z", "y", domain="com.microsoft"), domains=[("com.microsoft", 1)])
    with pytest.raises(BundleError, match=r"Inverse of com\.microsoft, which is not on the list"):
        adapted(model)
