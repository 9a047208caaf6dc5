"""What goes into an ONNX graph and what comes out, for the card of an artifact."""

from __future__ import annotations

from typing import Any

import onnx


def signature(graph: bytes) -> dict[str, Any]:
    """Inputs and outputs of an ONNX graph: type, shape and meaning by name, and its opset."""
    model = onnx.load_from_string(graph)
    held = {one.name for one in model.graph.initializer}
    ends = {"inputs": model.graph.input, "outputs": model.graph.output}
    [opset] = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    return {
        "opset": opset,
        **{
            end: {value.name: _described(value) for value in values if value.name not in held}
            for end, values in ends.items()
        },
    }


def _described(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    return {
        "type": onnx.TensorProto.DataType.Name(kind.elem_type).lower(),
        "shape": [one.dim_param or one.dim_value for one in kind.shape.dim],
        "meaning": value.doc_string,
    }
