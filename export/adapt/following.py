"""Reshapes that hide the number of images: the batch is followed through a graph, axis by axis.

Attention and windows fold the batch into other axes ([tokens, batch * heads, width]), so that no constant
of a graph for one image says where it is.  Here the shapes of all values are worked out for FACTOR times as
many images, node by node; where a Reshape to a constant shape stands, the axis of the batch is found from how
many numbers lie left of it in memory, which a Reshape does not change, and is left open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.adapt.editor import Editor, attribute
from export.adapt.running import Array, Failed
from metastable.networks import onnx_classifier

FACTOR = 7
"""A prime that is no usual size of anything."""
SHAPES = 64
"""The most numbers of a constant that may be a shape."""
Shape = tuple[int, ...]


def follow(made: Editor, values: Mapping[str, Array], opened: Mapping[str, Shape], batch: int) -> None:
    """Leave the batch open in Reshapes to constant shapes, in place.

    Args:
        values: of all that depends on the images, as they were for `batch` images.
        opened: values that hold the batch first already, with their shapes for `batch` images.

    Raises Failed where the batch cannot be followed.
    """
    source = made.graph.input[0].name
    # What is known as numbers: initialisers, and shapes that the graph takes of its values.
    data: dict[str, Any] = {one.name: one for one in made.graph.initializer}
    shapes = {name: (FACTOR * shape[0], *shape[1:]) for name, shape in opened.items()}
    shapes[source] = (FACTOR * batch, *values[source].shape[1:])
    inner: dict[str, int] = {}  # how much of the axis of the batch lies left of it, where that is not 1
    for node in made.graph.node:
        name = next((one for one in node.output if one in values), "")
        if not name or name in shapes:
            continue
        if (value := _counted(made, node, shapes, data)) is not None:
            data[name], shapes[name] = numpy_helper.from_array(value, name), value.shape
        elif node.op_type == "Reshape" and node.input[1] in data and node.input[1] not in shapes:
            if node.input[0] not in shapes:
                raise Failed("the batch cannot be followed to a Reshape")
            before, after = values[node.input[0]].shape, values[name].shape
            left = inner.get(node.input[0], 1)
            weighed = any(one in data for user in made.users(name) for one in user.input)
            axis, inner[name] = _axis(before, shapes[node.input[0]], after, left, batch, weighed=weighed)
            opened_shape = [-1 if i == axis else n for i, n in enumerate(after)]
            # A 0 is the input's size for some Reshapes and nothing for others; there is none now.
            node.input[1] = made.hold(np.array(opened_shape, np.int64))
            shapes[name] = tuple(FACTOR * n if i == axis else n for i, n in enumerate(after))
        else:
            shapes.update(_inferred(made, node, values, shapes, data))
            left = max(inner.get(one, 1) for one in node.input)
            inner |= dict.fromkeys(node.output, left)


def _counted(made: Editor, node: Any, shapes: Mapping[str, Shape], data: Mapping[str, Any]) -> Array | None:
    """The value of a node that computes with shapes alone, None of any other."""
    if node.op_type == "Shape" and not node.domain and node.input[0] in shapes:
        first, last = attribute(node, "start", 0), attribute(node, "end", None)
        return np.array(shapes[node.input[0]][first:last], np.int64)
    inputs = [name for name in node.input if name]
    if not inputs or any(name not in data for name in inputs):
        return None
    output = onnx.ValueInfoProto(name=node.output[0])
    graph = helper.make_graph([node], "counted", [], [output], [data[name] for name in dict.fromkeys(inputs)])
    model = helper.make_model(graph, opset_imports=made.proto.opset_import, ir_version=made.proto.ir_version)
    try:
        (value,) = onnx_classifier.session(model.SerializeToString(), made.file).run(None, {})
    except Exception:  # whatever ONNX Runtime raises
        raise Failed(f"{node.op_type} of shapes cannot be computed") from None
    return np.asarray(value)


def _axis(
    before: Shape, grown: Shape, after: Shape, left: int, batch: int, *, weighed: bool
) -> tuple[int, int]:
    """The axis of the batch after a Reshape, and how much of that axis lies left of it.

    As many rows of numbers are left of the batch as were before; `left` of them in its own axis.  `weighed`
    says that the last axis meets weights, so that the batch is none of it.
    """
    moved = [i for i, (n, m) in enumerate(zip(before, grown, strict=True)) if n != m]
    if len(moved) != 1 or 0 in after:
        raise Failed("the batch is in several axes of a Reshape")
    left *= math.prod(before[: moved[0]])
    starts = [math.prod(after[:i]) for i in range(len(after))]
    same = [i for i, start in enumerate(starts) if start == left]
    # An axis of its own; else the last that begins there; else the one that it lies inside of.
    own = [i for i in same if after[i] == batch]
    inside = [
        i for i, start in enumerate(starts) if _divides(start, left) and _divides(left // start, after[i])
    ]
    if same and not own and same[-1]:
        last = same[-1]
        if after[last] == (*before, 0)[moved[0] + 1] or (weighed and last == len(after) - 1):
            same = [last - 1]  # that axis stays whole, so the batch joins what is left of it
    if not (own or same or inside):
        raise Failed("the batch gets lost in a Reshape")
    axis = own[0] if own else (same or inside)[-1]
    return axis, left // starts[axis]


def _divides(part: int, whole: int) -> bool:
    return part < whole and whole % part == 0


def _inferred(
    made: Editor,
    node: Any,
    values: Mapping[str, Array],
    shapes: Mapping[str, Shape],
    data: Mapping[str, Any],
) -> dict[str, Shape]:
    """The shapes of a node's outputs, as ONNX infers them from those of its inputs."""
    versions = {one.domain: one.version for one in made.proto.opset_import}
    types, given = {}, {}
    for name in node.input:
        if name in data:
            types[name] = helper.make_tensor_type_proto(data[name].data_type, list(data[name].dims))
            if math.prod(data[name].dims) <= SHAPES:  # weights say nothing of shapes
                given[name] = data[name]
        elif name in shapes and name in values:
            types[name] = _type(values[name].dtype, shapes[name])
        elif name in shapes:  # a constant that was repeated for every image
            types[name] = _type(np.dtype(np.float32), shapes[name])
        elif name:
            raise Failed(f"the shape of an input of {node.op_type} is not known")
    try:
        schema = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, types, given, opset_imports=list(made.proto.opset_import)
        )
    except Exception as error:  # of onnx, written in C++
        raise Failed(f"the shape of {node.op_type} cannot be inferred: {type(error).__name__}") from None
    made_of = {}
    for name in node.output:
        if name not in values:
            continue
        dims = found[name].tensor_type.shape.dim if name in found else ()
        shape = tuple(one.dim_value for one in dims)
        if len(shape) != values[name].ndim or 0 in shape:
            raise Failed(f"the shape of {node.op_type} cannot be inferred")
        made_of[name] = shape
    return made_of


def _type(kind: np.dtype[Any], shape: Sequence[int]) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(kind), list(shape))
