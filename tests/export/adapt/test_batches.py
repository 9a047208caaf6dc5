import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose
from onnx import TensorProto
from torch import Tensor, nn

from metastable.errors import BundleError
from tests.export.adapt.graphs import BIAS, WEIGHTS, Array, adapted, classifier, logits, node, noise, said
from tests.networks.brought import Separable, Vit, seen


def fixed(module: nn.Module, size: int, *, opset: int = 17, batch: int = 1) -> onnx.ModelProto:
    """A module exported for one number of images, as torch.onnx.export does without options."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.rand(batch, 3, size, size),), data, dynamo=False, opset_version=opset
        )
    return onnx.load_from_string(data.getvalue())


def answers(module: nn.Module, x: Array) -> Array:
    with torch.no_grad():
        return np.asarray(module.eval()(torch.from_numpy(x)).numpy())


class Viewed(nn.Module):
    """Views with the batch written down, as many networks have them; `twice` folds it with another axis."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.layer, self.twice = nn.Linear(48, 4), twice

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        if self.twice:  # windows, as Swin has them
            x = x.view(n, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(n * 4, 48)
            out: Tensor = self.layer(x).view(n, 4, 4).mean(1)
            return out
        pooled = nn.functional.adaptive_avg_pool2d(x, 4).view(n, 48)
        scores: Tensor = self.layer(pooled).view(n, 4)
        return scores


class Windows(nn.Module):
    """Windows of patches with attention inside them, tokens first: the batch is folded into other axes."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        x = self.norm(x + self.attention(x, x, x)[0]).reshape(n, -1, c)
        x = torch.cat([self.token.repeat(n, 1, 1), x], 1)
        scores: Tensor = self.head(x[:, 0] + x.mean(1))
        return scores


class TokensFirst(nn.Module):
    """Attention over tokens that stand before the batch, PyTorch's default."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).permute(2, 0, 1)
        x = x + self.attention(x, x, x)[0]
        scores: Tensor = self.head(x.mean(0))
        return scores


class Resized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.interpolate(x, (5, 7), mode="nearest")
        return x[:, :, 1:3].mean((2, 3)) * torch.arange(1, 4)


NETWORKS: dict[str, tuple[Any, int]] = {
    "convolutions": (Separable, 16),
    "transformer": (lambda: Vit(16), 16),
    "views": (Viewed, 8),
    "windows": (lambda: Viewed(twice=True), 8),
    "attention in windows": (Windows, 32),
    "tokens before the batch": (TokensFirst, 16),
    "resize": (Resized, 8),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("declared", ["fixed", "dynamic by name only"])
def test_a_batch_of_one_is_made_dynamic(name: str, declared: str) -> None:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    module = seen(make(), size)
    model = fixed(module, size)
    if declared != "fixed":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    found = adapted(model)
    for n in (1, 2, 5, 9):
        x = noise(found, n)
        assert_allclose(logits(found, x), answers(module, x), rtol=1e-4, atol=1e-4)
    if declared == "fixed":
        assert "made for batches of 1: it takes any number of images now" in said(found)


def test_a_batch_of_eight_is_made_dynamic() -> None:
    module = Viewed()
    found = adapted(fixed(module, 8, batch=8))
    for n in (1, 5, 8):
        x = noise(found, n)
        assert_allclose(logits(found, x), answers(module, x), rtol=1e-4, atol=1e-4)
    assert "batches of 8" in said(found)


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 18])
def test_opsets(opset: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(seen(Separable(), 16), nn.Softmax(1))
    found = adapted(fixed(module, 16, opset=opset))
    x = noise(found)
    z = logits(found, x)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert_allclose(p, answers(module, x), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_rewritten_is_refused_with_the_option() -> None:
    held = {"to": np.array([3, 8, 8]), "back": np.array([1, 3, 8, 8])}
    front = [
        node("Reshape", "x to", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1]),
        node("Reshape", "t back", "p"),
    ]
    with pytest.raises(BundleError, match=r"batches of 1 inside.*dynamic_shapes.*dynamic_axes"):
        adapted(classifier(node("Slice", "z start end", "y"), front=front, pixels="p", shape=(1, 3, 8, 8),
                           held={**held, "start": np.array([0]), "end": np.array([1])}))  # fmt: skip


def test_a_mean_over_the_batch_is_refused() -> None:
    ends = [node("ReduceMean", "z axes", "m"), node("Sub", "z m", "y")]
    with pytest.raises(BundleError, match=r"differently beside other images.*training mode.*model\.eval"):
        adapted(classifier(*ends, held={"axes": np.array([0])}))


def test_batch_norm_in_training_mode_is_refused() -> None:
    held = {"one": np.ones(3, np.float32), "none": np.zeros(3, np.float32)}
    front = [node("BatchNormalization", "x one none none one", "p m v", training_mode=1)]
    with pytest.raises(BundleError, match=r"batch norm in training mode.*model\.eval"):
        adapted(classifier(front=front, pixels="p", held=held))


@pytest.mark.parametrize("on", [True, False])
def test_dropout_in_training_mode_is_refused(on: bool) -> None:
    ends = [node("Dropout", "z half on", "y")]
    model = classifier(*ends, held={"half": np.float32(0.5), "on": np.bool_(on)})
    if on:
        with pytest.raises(BundleError, match=r"dropout in training mode.*model\.eval"):
            adapted(model)
    else:
        assert adapted(model).classes == 10


def test_dynamic_quantisation_would_let_others_move_an_answer() -> None:
    weights = np.clip(np.round(WEIGHTS * 20), -127, 127).astype(np.int8)
    ends = [
        node("DynamicQuantizeLinear", "colours", "q s o"),
        node("MatMulInteger", "q w8 o", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f s", "m"),
        node("Mul", "m by", "n"),
        node("Add", "n bias", "y"),
    ]
    with pytest.raises(BundleError, match=r"quantised dynamically.*other people's.*QDQ"):
        adapted(classifier(*ends, held={"w8": weights, "by": np.float32(1 / 20)}))


def test_quantised_weights_and_values_are_taken() -> None:
    ends = [
        node("QuantizeLinear", "z scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "d"),
        node("Softmax", "d", "s", axis=1),
        node("QuantizeLinear", "s fine least", "q2"),
        node("DequantizeLinear", "q2 fine least", "y"),
    ]
    held = {"scale": np.float32(0.1), "zero": np.int8(0), "fine": np.float32(1 / 256), "least": np.int8(-128)}
    found = adapted(classifier(*ends, held=held))
    x = noise(found)
    assert_allclose(logits(found, x), x.mean((2, 3)) @ WEIGHTS + BIAS, atol=0.06)
    assert "8 bits" in said(found)
