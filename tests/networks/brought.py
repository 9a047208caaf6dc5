"""Networks that are not of this project, as ONNX graphs that torch.onnx.export writes."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metastable import bundle
from metastable.networks.onnx_classifier import OnnxClassifier

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


class Vit(nn.Module):
    """A transformer of patches: a class token, positions, pre-norm attention, GELU."""

    def __init__(self, size: int, classes: int = 4, patch: int = 4, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        b, n, c = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        x = x + self.mlp(self.norms[1](x))
        logits: Tensor = self.head(self.norms[2](x)[:, 0])
        return logits


class Separable(nn.Module):
    """Depthwise and pointwise convolutions with batch norm, squeeze and excitation, and hard swish."""

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.Hardswish())
        self.deep = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.BatchNorm2d(width), nn.SiLU()
        )
        self.gate = nn.Sequential(
            nn.Conv2d(width, 4, 1), nn.ReLU6(), nn.Conv2d(4, width, 1), nn.Hardsigmoid()
        )
        self.point = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width), nn.MaxPool2d(2))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.deep(x) + x
        x = self.point(x * self.gate(F.adaptive_avg_pool2d(x, 1)))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def seen(network: nn.Module, size: int) -> nn.Module:
    """The network in eval mode, its batch norms filled by some noise."""
    network.train()
    with torch.no_grad():
        network(torch.randn(32, 3, size, size))
    return network.eval()


def exported(network: nn.Module, size: int, *, dynamo: bool = False) -> bytes:
    """The network's graph, weights inside, for any number of images; by the newer exporter if `dynamo`."""
    images, data = torch.rand(2, 3, size, size), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = ({0: torch.export.Dim("batch")},)
            program = torch.onnx.export(
                network.eval(), (images,), dynamic_shapes=batch, external_data=False, verbose=False
            )
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
        torch.onnx.export(
            network.eval(), (images,), data, dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}, opset_version=18,
        )  # fmt: skip
    return data.getvalue()


def classifier(graph: bytes | onnx.ModelProto, size: int) -> OnnxClassifier:
    raw = graph if isinstance(graph, bytes) else graph.SerializeToString()
    return OnnxClassifier(raw, size=(size, size), mean=MEAN, std=STD, file="it.onnx")


def write_bundle(folder: Path, base: Path, graph: bytes, *, size: int, to: int) -> Path:
    """The bundle `base` of images of size `to` with a graph of `size` in the place of its classifier."""
    stored = bundle.stored_onnx(graph, size=(size, size), mean=MEAN, std=STD, to=(to, to))
    classes = bundle.load(base).classes
    bundle.rewrite(base, folder, stored, name="mine", classes=classes, provenance=bundle.Provenance())
    return folder
