"""A batch of any size: where a graph was exported for one number of images, it is rewritten, and compared.

What is rewritten: the declared shapes, constant shapes that begin with the number of images (Reshape, Expand,
Resize, ConstantOfShape), and constants of one image that are joined to the images' own values (class tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from export.adapt.editor import Editor, attribute
from export.adapt.inputs import Taken, declare
from export.adapt.running import Array, Failed, Running
from metastable.errors import BundleError

IMAGES = 5
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
    for number, made in enumerate(_rewritings(editor, taken)):
        try:
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
        f"({reasons[0]})"
    )


def dependence(made: Editor, taken: Taken, names: Sequence[str]) -> float:
    """How far values of one image move, relative to the largest, when it has neighbours.

    Raises Failed where none of the values has a row for each image, or the graph does not run.
    """
    running, images = Running(made, names), taken.noise(IMAGES)
    whole = running(images)
    again = running(images)
    pair, alone = running(images[:2]), [running(images[i : i + 1]) for i in range(IMAGES)]
    away, rows = 0.0, 0
    for name in names:
        values = [whole[name], again[name], pair[name], *(one[name] for one in alone)]
        if not all(isinstance(one, np.ndarray) and one.dtype.kind in "fiub" for one in values):
            continue
        if values[0].size != sum(one.size for one in values[3:]) or len(values[0].reshape(-1)) == 0:
            continue
        if values[0].shape[:1] != (IMAGES,) or pair[name].shape[:1] != (2,):
            continue
        rows += 1
        if values[0].dtype.kind == "f":
            wanted = np.stack([one.reshape(-1) for one in values[3:]]).astype(np.float64)
            away = max(away, *(_distance(one, wanted) for one in values[:3]))
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
        made.say(
            "8-bit dynamic quantisation measures a whole batch: what an image gets depends on its neighbours "
            f"(on noise by {away:.2g} of the largest value), and there are no gradients"
        )
    elif away > (HALF if half else TOLERANCE):
        raise BundleError(
            f"{made.file} answers an image differently beside other images (by {away:.2g} of the largest): "
            "batch norm or dropout is in training mode, or it takes a mean over the batch; export it after "
            "model.eval()"
        )


def _rewritings(editor: Editor, taken: Taken) -> Iterator[Editor]:
    """The graph with an open batch: as it is, with careful and with bold changes inside."""
    for level in range(3):
        made = editor.copy()
        declare(made, taken.form, None)
        if level:
            _open_shapes(made, taken, bold=level == 2)
        yield made


def _open_shapes(made: Editor, taken: Taken, *, bold: bool) -> None:
    batch = taken.form.batch or 1
    source = made.graph.input[0].name
    moving = made.depending(source)
    _fold(made, moving, taken)
    count = made.fresh("count")
    nodes = list(made.graph.node)
    used = False
    for node in nodes:
        if node.domain:
            continue
        if node.op_type == "Reshape" and node.input[0] in moving:
            _open_reshape(made, node, batch, bold=bold)
        elif node.op_type in SHAPES:
            used |= _lead(made, node, SHAPES[node.op_type], batch, count)
        elif node.op_type == "Concat" and attribute(node, "axis", 0) > 0 and moving.intersection(node.input):
            used |= _spread(made, node, batch, count)
    if used:
        shape, first = made.fresh("shape"), made.hold(np.array([0]))
        made.before(
            [
                helper.make_node("Shape", [source], [shape]),
                helper.make_node("Gather", [shape, first], [count], axis=0),
            ]
        )


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


def _open_reshape(made: Editor, node: Any, batch: int, *, bold: bool) -> None:
    shape = made.constant(node.input[1])
    if shape is None or shape.ndim != 1 or len(shape) == 0:
        return
    exact = attribute(node, "allowzero", 0)  # dynamo's exports say that a 0 is none of the input's sizes
    if exact and 0 in shape:
        return
    if shape[0] <= 0 or (shape[0] != batch and not bold):
        return
    opened = shape.copy()
    if -1 not in shape:
        opened[0] = -1
    elif shape[0] == batch:
        opened[0] = 0
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name == "allowzero":
            del node.attribute[index]
    node.input[1] = made.hold(opened.astype(np.int64))


def _lead(made: Editor, node: Any, at: int, batch: int, count: str) -> bool:
    """Put the number of images first in a constant shape; whether it was there."""
    inputs = node.input
    shape = made.constant(inputs[at]) if len(inputs) > at and inputs[at] else None
    if shape is None or shape.ndim != 1 or len(shape) < 2 or shape[0] != batch:
        return False
    tile = node.op_type == "Tile"
    if tile and made.constant(inputs[0]) is None:
        return False
    inputs[at] = _joined(made, node, count, shape[1:])
    return True


def _spread(made: Editor, node: Any, batch: int, count: str) -> bool:
    """Repeat constants of one image that are joined to values of every image."""
    found = False
    for index, name in enumerate(node.input):
        value = made.constant(name)
        if value is not None and value.ndim > 1 and value.shape[0] == batch:
            one = made.hold(value[:1])
            shape = _joined(made, node, count, np.ones(value.ndim - 1))
            spread = made.fresh("spread")
            _insert(made, node, helper.make_node("Expand", [one, shape], [spread]))
            node.input[index] = spread
            found = True
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
