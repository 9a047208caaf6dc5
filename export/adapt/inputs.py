"""The one input of a graph, made canonical: float32 [batch, C, H, W], planes RGB."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper

from export.adapt.editor import BATCH, FLOAT, Editor, attribute
from export.adapt.forms import FLOATS, WHOLE, Form, forms
from export.adapt.reading import shown
from export.adapt.running import Failed, Running, noise
from export.adapt.scaling import BYTES, MOVES, UNIT, inside
from export.adapt.values import Wishes
from metastable.errors import BundleError

Step = tuple[str, list[Any], dict[str, Any]]
"""An operator, its constants after the images, its attributes."""


@dataclass(frozen=True)
class Taken:
    """What was found of the input: its form, what its values need, what stays undecided."""

    form: Form
    mean: tuple[float, ...]
    std: tuple[float, ...]
    undecided: tuple[str, ...]

    def noise(self, n: int) -> Any:
        """n canonical images."""
        return noise(self.form.shape, self.mean, self.std, n)


def allowed_forms(editor: Editor, wishes: Wishes) -> list[Form]:
    """The forms that its input may have, the likeliest first.

    Raises BundleError where there is not one input, or it holds no images that this project purifies.
    """
    inputs = editor.graph.input
    if len(inputs) != 1:
        names = ", ".join(shown(one.name) for one in itertools.islice(inputs, 8))
        raise BundleError(
            f"{editor.file} takes {len(inputs)} inputs ({names}), and one batch of images is wanted: export "
            "the network with the others as constants"
        )
    return list(forms(editor, wishes))


def adapt_input(editor: Editor, wishes: Wishes, allowed: list[Form]) -> tuple[Editor, Taken]:
    """The graph with a canonical input, of the first allowed form that runs; its batch stays as it is."""
    form = allowed[0]
    if len(allowed) > 1:
        form = next((one for one in allowed if _works(editor, one, wishes)), form)
    made, taken = _adapted(editor, form, wishes)
    open_size = len({(one.height, one.width) for one in allowed}) > 1
    if open_size and form.height == allowed[0].height:
        made.say(f"the graph takes any height and width: {form.height} x {form.width} was taken")
        taken = Taken(form, taken.mean, taken.std, (*taken.undecided, "size"))
    elif open_size:
        made.say(f"the graph leaves its size open and works at {form.height} x {form.width}")
    return made, taken


def _works(editor: Editor, form: Form, wishes: Wishes) -> bool:
    made, taken = _adapted(editor, form, wishes)
    n = form.batch or 1
    try:
        found = Running(made, [one.name for one in made.graph.output])(taken.noise(n))
    except Failed:
        return False
    return any(np.shape(value)[:1] == (n,) for value in found.values())


def _adapted(editor: Editor, form: Form, wishes: Wishes) -> tuple[Editor, Taken]:
    made = editor.copy()
    value = made.graph.input[0]
    old, undecided = value.name, []
    seen = inside(made, old)
    limits = wishes.range or seen
    if form.kind in WHOLE:
        limits = wishes.range or BYTES
    if limits is None:
        undecided += ["range"]
    if seen is None and form.kind not in WHOLE:
        undecided += ["normalization"]
    elif seen is not None:
        made.say(f"the graph scales its images itself: it takes values of {seen[0]:g} to {seen[1]:g}")
    low, high = limits or UNIT
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        raise BundleError(f"a range is two numbers, the lower first, not {low:g} and {high:g}")
    steps: list[Step] = []
    if form.channels == 1 and wishes.order is not None:
        raise BundleError(f"{made.file} takes gray images, which have no order of channels")
    if form.channels == 3 and wishes.order is None:
        undecided += ["order"]
    if form.channels == 3 and wishes.order == "bgr":
        steps.append(("Gather", [np.array([2, 1, 0])], {"axis": 1}))
        made.say("the graph takes BGR: the channels are turned round")
    steps += _arranged(made, form, wishes, undecided)
    steps += _cast(made, form, old)
    _prepend(made, old, steps)
    value.type.tensor_type.elem_type = FLOAT
    declare(made, form, form.batch)
    scale = 1 / (high - low)
    if form.kind in WHOLE or (low, high) != UNIT:
        made.say(f"the graph is given values of {low:g} to {high:g}")
    mean, std = (0.0 if low == 0 else -low * scale,) * form.channels, (scale,) * form.channels
    return made, Taken(form, mean, std, tuple(undecided))


def _arranged(made: Editor, form: Form, wishes: Wishes, undecided: list[str]) -> list[Step]:
    turn: Step = ("Transpose", [], {"perm": [0, 2, 3, 1]})
    if form.layout == "nhwc":
        made.say("the graph takes NHWC: its images are transposed")
        return [turn]
    if not form.layout.startswith("flat"):
        return []
    made.say(f"the graph takes rows of {math.prod(form.shape)} numbers: its images are flattened")
    if form.channels == 3 and wishes.layout is None:
        undecided.append("layout")
    reshape: Step = ("Reshape", [np.array([-1, math.prod(form.shape)])], {})
    return [turn, reshape] if form.layout == "flat" and form.channels == 3 else [reshape]


def _cast(made: Editor, form: Form, old: str) -> list[Step]:
    if form.kind == FLOAT:
        return []
    cast: Step = ("Cast", [], {"to": form.kind})
    if form.kind in FLOATS:
        made.say(f"the graph takes {FLOATS[form.kind]}: float32 images are cast to it")
        return [cast]
    if _only_cast(made, old):
        made.say(f"the graph takes {WHOLE[form.kind]} and makes floats of them: it is given floats")
        return []
    made.say(f"the graph takes {WHOLE[form.kind]}: images are rounded to it, so it gives no gradients")
    half, low, high = (np.array(one, np.float32) for one in (0.5, 0, 255))
    return [("Add", [half], {}), ("Floor", [], {}), ("Max", [low], {}), ("Min", [high], {}), cast]


def _only_cast(made: Editor, name: str) -> bool:
    """Whether whole numbers become floats before anything is computed with them."""
    stack, seen = [name], set[str]()
    while stack:
        users = made.users(stack.pop())
        for node in users:
            if node.op_type == "Cast" and attribute(node, "to", 0) in FLOATS:
                continue
            if node.op_type not in MOVES - {"Cast"} or node.output[0] in seen:
                return False
            seen.add(node.output[0])
            stack.append(node.output[0])
        if not users:
            return False
    return True


def _prepend(made: Editor, old: str, steps: list[Step]) -> None:
    """Nodes between a new input and the value that was the input."""
    if not steps:
        return
    name = made.fresh("images")
    made.graph.input[0].name = name
    nodes = []
    for number, (operator, constants, attributes) in enumerate(steps):
        output = old if number == len(steps) - 1 else made.fresh(operator.lower())
        inputs = [name, *(made.hold(one) for one in constants)]
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        name = output
    made.before(nodes)


def declare(made: Editor, form: Form, batch: int | None) -> None:
    """Write the shape of the canonical input down; batch None leaves it open."""
    shape = made.graph.input[0].type.tensor_type.shape
    del shape.dim[:]
    first = shape.dim.add()
    if batch is None:
        first.dim_param = BATCH
    else:
        first.dim_value = batch
    for size in form.shape:
        shape.dim.add().dim_value = size
