"""A batch of any size: where a graph was exported for one number of images, it is rewritten, and compared.

What is rewritten: the declared shapes, constant shapes that begin with the number of images (Reshape, Expand,
Resize, ConstantOfShape), and constants of one image that are joined to the images' own values (class tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from export.adapt.editor import Editor, attribute
from export.adapt.following import follow
from export.adapt.inputs import Taken, declare
from export.adapt.running import Array, Failed, Running
from metastable.errors import BundleError

IMAGES, LEVELS = 5, 3
TOLERANCE, HALF = 1e-3, 2e-2
"""How far an image's values may be from those it has alone, relative to the largest; then for float16."""
FOLDED = 2**24
"""The most numbers of a constant that is computed beforehand."""
DYNAMIC = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
SHAPES = {"Expand": 1, "Resize": 3, "ConstantOfShape": 0, "Tile": 1}
"""Operators that take a shape, and as which input (Tile: of a constant only)."""


def free_batch(editor: Editor, taken: Taken, names: Sequence[str]) -> Editor:
    """The graph for any number of images; `names` are the values that matter.

    Raises BundleError where no rewriting works, and where an image's values depend on its neighbours.
    """
    reasons, declared = list[str](), taken.form.batch
    for number in range(LEVELS):
        try:
            made = _rewritten(editor, taken, number)
            away = dependence(made, taken, names)
        except Failed as error:
            reasons.append(str(error))
            continue
        if number or declared is not None:
            made.say(f"the graph was made for batches of {declared or 1}: it takes any number of images now")
        _judge(made, away)
        return made
    raise BundleError(
        f"{editor.file} is made for batches of {declared or 1} inside, and could not be rewritten: export it "
        "with dynamic_shapes={0: torch.export.Dim('batch')} for its images (dynamo), or with dynamic_axes "
        f"({reasons[0][:160]})"
    )


def dependence(made: Editor, taken: Taken, names: Sequence[str]) -> float:
    """How far values of one image move, relative to the largest, when it has neighbours.

    Raises Failed where none of the values has a row for each image, or the graph does not run.
    """
    running, images = Running(made, names), taken.noise(IMAGES)
    whole = running(images)
    pair, alone = running(images[:2]), [running(images[i : i + 1]) for i in range(IMAGES)]
    away, rows = 0.0, 0
    for name in names:
        values = [whole[name], pair[name], *(one[name] for one in alone)]
        if not all(isinstance(one, np.ndarray) and one.dtype.kind in "fiub" for one in values):
            continue
        if values[0].size != sum(one.size for one in values[2:]) or len(values[0].reshape(-1)) == 0:
            continue
        if values[0].shape[:1] != (IMAGES,) or pair[name].shape[:1] != (2,):
            continue
        rows += 1
        if values[0].dtype.kind == "f":
            wanted = np.stack([one.reshape(-1) for one in values[2:]]).astype(np.float64)
            away = max(away, *(_distance(one, wanted) for one in values[:2]))
    if not rows:
        raise Failed(f"it makes {[list(np.shape(whole[name])) for name in names]} of {IMAGES} images")
    return away


def _distance(found: Array, wanted: Array) -> float:
    wanted = wanted[: len(found)]
    away = np.abs(found.reshape(len(found), -1).astype(np.float64) - wanted).max()
    # Numbers that are none are found later, where the logits are looked at.
    return float(np.nan_to_num(away / max(1.0, np.abs(wanted).max())))


def _judge(made: Editor, away: float) -> None:
    half = any(one.data_type == TensorProto.FLOAT16 for one in made.graph.initializer)
    half = half or any(one.op_type == "Cast" and attribute(one, "to", 0) == 10 for one in made.graph.node)
    if any(node.op_type in DYNAMIC for node in made.graph.node):
        # A server puts images of several people into a batch: nobody may move another one's answer.
        raise BundleError(
            f"{made.file} is quantised dynamically, which measures a whole batch: what an image gets depends "
            f"on its neighbours (on noise by {away:.2g} of the largest value), and on a server those are "
            "other people's: quantise it statically (QDQ), or bring the float32 graph"
        )
    if away > (HALF if half else TOLERANCE):
        raise BundleError(
            f"{made.file} answers an image differently beside other images (by {away:.2g} of the largest): "
            "batch norm or dropout is in training mode, or it takes a mean over the batch; export it after "
            "model.eval()"
        )


def _rewritten(editor: Editor, taken: Taken, level: int) -> Editor:
    """The graph with an open batch: as it is, with shapes opened that begin with it, with it followed.

    Raises Failed where that cannot be done.
    """
    made = editor.copy()
    declare(made, taken.form, None)
    if level:
        _open_shapes(made, taken, followed=level == 2)
    return made


def _open_shapes(made: Editor, taken: Taken, *, followed: bool) -> None:
    batch = taken.form.batch or 1
    source = made.graph.input[0].name
    moving = made.depending(source)
    _fold(made, moving, taken)
    values = _values(made, moving, taken, batch) if followed else {}
    count = made.fresh("count")
    opened: dict[str, tuple[int, ...]] = {}
    for node in list(made.graph.node):
        if node.domain:
            continue
        if node.op_type == "Reshape" and not followed and node.input[0] in moving:
            _open_reshape(made, node, batch)
        elif node.op_type in SHAPES:
            opened |= _lead(made, node, SHAPES[node.op_type], batch, count)
        elif node.op_type == "Concat" and attribute(node, "axis", 0) > 0 and moving.intersection(node.input):
            opened |= _spread(made, node, batch, count)
    if followed:
        known = {name: values[name].shape if name in values else shape for name, shape in opened.items()}
        follow(made, values, known, batch)
    if opened:
        shape, first = made.fresh("shape"), made.hold(np.array([0]))
        made.before(
            [
                helper.make_node("Shape", [source], [shape]),
                helper.make_node("Gather", [shape, first], [count], axis=0),
            ]
        )


def _values(made: Editor, moving: set[str], taken: Taken, batch: int) -> dict[str, Array]:
    """All values that depend on the images, for as many images as the graph was made for."""
    names = [name for node in made.graph.node for name in node.output if name in moving]
    images = taken.noise(batch)
    found = Running(made, names)(images) if names else {}
    values = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    return {made.graph.input[0].name: images, **values}


def _fold(made: Editor, moving: set[str], taken: Taken) -> None:
    """Make initialisers of what is computed of constants alone, so that its shape and values are seen."""
    inputs = {name for node in made.graph.node if moving.intersection(node.output) for name in node.input}
    names = sorted(name for name in inputs - moving if name and made.maker(name) is not None)
    if not names:
        return
    found = Running(made, names)(taken.noise(taken.form.batch or 1))
    whole = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    held = {name: made.hold(value) for name, value in whole.items() if value.size <= FOLDED}
    for node in made.graph.node:
        node.input[:] = [held.get(name, name) for name in node.input]
    made.prune()


def _open_reshape(made: Editor, node: Any, batch: int) -> None:
    shape = made.constant(node.input[1])
    if shape is None or shape.ndim != 1 or len(shape) == 0:
        return
    exact = attribute(node, "allowzero", 0)  # dynamo's exports say that a 0 is none of the input's sizes
    if exact and 0 in shape:
        return
    if shape[0] != batch:
        return
    opened = shape.copy()
    opened[0] = 0 if -1 in shape else -1
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name == "allowzero":
            del node.attribute[index]
    node.input[1] = made.hold(opened.astype(np.int64))


def _lead(made: Editor, node: Any, at: int, batch: int, count: str) -> dict[str, tuple[int, ...]]:
    """Put the number of images first in a constant shape; the value that then holds it first, if any."""
    inputs = node.input
    shape = made.constant(inputs[at]) if len(inputs) > at and inputs[at] else None
    if shape is None or shape.ndim != 1 or len(shape) < 2 or shape[0] != batch:
        return {}
    if node.op_type == "Tile" and made.constant(inputs[0]) is None:
        return {}
    inputs[at] = _joined(made, node, count, shape[1:])
    return {node.output[0]: tuple(int(one) for one in shape)}


def _spread(made: Editor, node: Any, batch: int, count: str) -> dict[str, tuple[int, ...]]:
    """Repeat constants of one image that are joined to values of every image; the repeated ones."""
    found = {}
    for index, name in enumerate(node.input):
        value = made.constant(name)
        if value is not None and value.ndim > 1 and value.shape[0] == batch:
            one = made.hold(value[:1])
            shape = _joined(made, node, count, np.ones(value.ndim - 1))
            spread = made.fresh("spread")
            _insert(made, node, helper.make_node("Expand", [one, shape], [spread]))
            node.input[index] = spread
            found[spread] = value.shape
    return found


def _joined(made: Editor, node: Any, count: str, rest: Array) -> str:
    joined = made.fresh("shape")
    parts = [count, made.hold(np.asarray(rest).astype(np.int64))]
    _insert(made, node, helper.make_node("Concat", parts, [joined], axis=0))
    return joined


def _insert(made: Editor, before: Any, node: Any) -> None:
    """Put a node right before another one."""
    for index, one in enumerate(made.graph.node):
        if one is before or one == before:
            made.graph.node.insert(index, node)
            return
