"""Small classifiers as graphs: colours of an image through one layer, with the ends of other people's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.adapt import Adapted, Wishes, adapt

CLASSES = 10
WEIGHTS = np.random.default_rng(0).normal(0, 2, (3, CLASSES)).astype(np.float32)
BIAS = np.random.default_rng(1).normal(0, 1, CLASSES).astype(np.float32)
Node = tuple[Any, ...]
Array = NDArray[Any]


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def classifier(
    *ends: onnx.NodeProto,
    front: Sequence[onnx.NodeProto] = (),
    shape: Sequence[Any] = ("batch", 3, 8, 8),
    kind: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
    made: int = TensorProto.FLOAT,
    opset: int = 18,
    held: dict[str, Any] | None = None,
    domains: Sequence[tuple[str, int]] = (),
    pixels: str = "x",
) -> onnx.ModelProto:
    """Mean colours of `pixels` [batch, 3, H, W], then a linear layer to `z` [batch, 10], then `ends`.

    Without ends `z` is the output.  `front` makes `pixels` of the input `x`.
    """
    body = [
        *front,
        node("GlobalAveragePool", pixels, "pooled"),
        node("Flatten", "pooled", "colours"),
        node("Gemm", "colours weights bias", "z"),
        *ends,
    ]
    weights = {"weights": WEIGHTS, "bias": BIAS, **(held or {})}
    given = {name for one in body for name in one.input}
    graph = helper.make_graph(
        body,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, made, None) for name in (outputs if ends else ("z",))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items() if k in given],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(*one) for one in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def adapted(model: onnx.ModelProto, **wishes: Any) -> Adapted:
    return adapt(model.SerializeToString(), Wishes(**wishes))


def noise(found: Adapted, n: int = 5) -> Array:
    """Images [n, C, H, W] in [0, 1]."""
    rng = np.random.default_rng(7)
    return rng.random((n, found.channels, found.height, found.width), np.float32)


def logits(found: Adapted, x: Array) -> Array:
    """What an adapted classifier says of images [n, C, H, W] in [0, 1]."""
    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (found.mean, found.std))
    return run(found.graph, (x - mean) / std)


def run(graph: bytes, x: Array) -> Array:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(x)})
    return np.asarray(out)


def expected(x: Array, scale: float = 1.0) -> Array:
    """Logits of `classifier` for images [n, 3, H, W] in [0, 1]."""
    return np.asarray(scale * x.mean((2, 3)) @ WEIGHTS + BIAS)


def log_softmax(z: Array) -> Array:
    top = z - z.max(1, keepdims=True)
    return np.asarray(top - np.log(np.exp(top).sum(1, keepdims=True)))


def said(found: Adapted) -> str:
    return "; ".join(found.changes)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
