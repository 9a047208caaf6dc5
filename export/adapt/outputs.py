"""The one output of a graph, made canonical: logits float32 [batch, classes]."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from export.adapt.editor import BATCH, FLOAT, Editor
from export.adapt.endings import Ending, ending
from export.adapt.inputs import Taken
from export.adapt.reading import shown
from export.adapt.running import Array, Failed, Running, softmax
from metastable.errors import BundleError

PROBES = 5
CLASSES = 100_000
FLOOR = 1e-7
"""The least probability whose logarithm is taken: float32 has no finer steps below one."""
EXACT, ROUNDED = 5e-3, 2e-2
"""How far probabilities may be from the softmax of what stands for their logits; and of 8-bit ones."""


@dataclass(frozen=True)
class Seen:
    """A value that may be the answer.

    Attributes:
        values: its numbers for PROBES images.
        ending: what it ends with.
        drops: whether one image alone loses an axis (squeeze).
    """

    name: str
    values: Array
    ending: Ending
    drops: bool

    @property
    def logits(self) -> bool:
        """Whether it could be logits or probabilities of two classes or more."""
        return self.values.dtype.kind == "f" and self.ending.kind != "choice" and self.columns > 1

    @property
    def single(self) -> bool:
        return self.values.dtype.kind == "f" and self.ending.kind != "choice" and self.columns == 1

    @property
    def columns(self) -> int:
        """Numbers an image, 0 where they are not in one row."""
        shape = self.values.shape
        if not shape or shape[0] != PROBES or sum(one > 1 for one in shape[1:]) > 1:
            return 0
        return int(np.prod(shape[1:], dtype=np.int64))


def wanted_names(editor: Editor, wished: str | None) -> list[str]:
    """The values to look at: the one that was wished for, or all outputs.

    Raises BundleError listing the outputs for a name that no value has.
    """
    names = [one.name for one in editor.graph.output]
    if wished is None:
        return names
    inside = {name for node in editor.graph.node for name in node.output if name}
    if wished not in inside:
        near = difflib.get_close_matches(wished, sorted(inside)[:5000], n=3)
        like = f"; like it are {', '.join(map(shown, near))}" if near else ""
        listed = ", ".join(map(shown, names[:8]))
        raise BundleError(f"{editor.file} has no value {shown(wished)}: its outputs are {listed}{like}")
    editor.set_output(wished)
    return [wished]


def adapt_output(editor: Editor, taken: Taken, names: list[str], wished: str | None) -> int:
    """Make logits of one of the values `names`, in place; returns how many classes there are.

    Raises BundleError, saying what is possible, where none of them can be logits.
    """
    images = taken.noise(PROBES)
    running = Running(editor, names)
    found, alone = running(images), running(images[:1])
    seen = [
        Seen(name, values, ending(editor, name), np.ndim(alone[name]) != values.ndim)
        for name, values in found.items()
        if isinstance(values, np.ndarray)
    ]
    chosen = _chosen(editor, seen)
    if wished is None and len(names) > 1:
        others = ", ".join(shown(one) for one in names if one != chosen.name)
        editor.say(f"{shown(chosen.name)} is taken: no other output can be logits ({others})")
    elif wished is not None:
        editor.say(f"{shown(wished)} is taken as its output")
    if chosen.columns == 1:
        name, classes = _two_classes(editor, chosen), 2
    else:
        name, classes = _several(editor, chosen, images), chosen.columns
    if classes > CLASSES:
        raise BundleError(f"{editor.file} has {classes} classes; at most {CLASSES} are taken")
    editor.set_output(name)
    editor.prune()
    value = editor.graph.output[0]
    value.type.tensor_type.elem_type = FLOAT
    shape = value.type.tensor_type.shape
    shape.dim.add().dim_param = BATCH
    shape.dim.add().dim_value = classes
    return classes


def _chosen(editor: Editor, seen: list[Seen]) -> Seen:
    several = [one for one in seen if one.logits]
    # Of logits and their probabilities the logits are meant.
    several = [one for one in several if not any(_follows(one, other) for other in several)]
    several = several or [one for one in seen if one.single]
    if len(several) == 1:
        return several[0]
    listed = ", ".join(f"{shown(s.name)} {s.values.dtype} {list(s.values.shape)}" for s in seen[:8])
    if several:
        raise BundleError(
            f"{editor.file} has several outputs that could be logits: name one with --output (of {PROBES} "
            f"images they are {listed})"
        )
    for one in seen:
        if one.ending.kind == "choice":
            raise BundleError(
                f"{editor.file} ends with {one.ending.operator}, which leaves class numbers, and logits are "
                f"needed: {shown(one.ending.before)} goes into it, so try --output {shown(one.ending.before)}"
            )
    raise BundleError(
        f"{editor.file} gives no row of logits an image (of {PROBES} images it makes {listed}): name a value "
        "inside that is [batch, classes] with --output; detectors and segmenters are not classifiers"
    )


def _follows(one: Seen, other: Seen) -> bool:
    """Whether one value is the softmax of another."""
    if one is other or one.columns != other.columns:
        return False
    p, z = (each.values.reshape(PROBES, -1).astype(np.float64) for each in (one, other))
    return bool(np.abs(softmax(z) - p).max() < EXACT)


def _row(editor: Editor, name: str, columns: int, *, cast: bool) -> str:
    """The value as float32 [batch, columns]."""
    if cast:
        name = editor.after("Cast", name, to=FLOAT)
    return editor.after("Reshape", name, editor.hold(np.array([-1, columns])))


def _plain(editor: Editor, chosen: Seen) -> str:
    values, columns = chosen.values, chosen.columns
    if values.ndim != 2:
        sizes = ", ".join(["batch", *(str(one) for one in values.shape[1:])])
        editor.say(f"its output is [{sizes}]: it becomes [batch, {columns}]")
    elif chosen.drops:
        editor.say(f"it drops the batch of one image: that is kept, [batch, {columns}]")
    elif values.dtype == np.float32:
        return chosen.name
    if values.dtype != np.float32:
        editor.say(f"its output is {values.dtype}: it is cast to float32")
    return _row(editor, chosen.name, columns, cast=values.dtype != np.float32)


def _several(editor: Editor, chosen: Seen, images: Array) -> str:
    """Logits of two columns or more."""
    p = chosen.values.reshape(PROBES, -1).astype(np.float64)
    kind = chosen.ending.kind
    if kind == "log-softmax":
        editor.say("it ends with a log-softmax, whose values are taken as logits")
    if kind == "softmax" and (cut := _before_softmax(editor, chosen, p, images)) is not None:
        editor.say(f"it ends with a softmax ({chosen.ending.operator}): what goes into it is taken as logits")
        return cut
    if bool((p >= 0).all()) and bool((np.abs(p.sum(1) - 1) < 1e-3).all()):
        editor.say(f"it gives probabilities: their logarithm is taken, of {FLOOR:g} at least")
        floor = editor.hold(np.array(FLOOR, np.float32))
        return editor.after("Log", editor.after("Max", _plain(editor, chosen), floor))
    if kind == "sigmoid":
        raise BundleError(
            f"{editor.file} gives each of its {chosen.columns} labels a probability of its own "
            f"({chosen.ending.operator}), and an image has one label here: that of averaged logits. If each "
            f"image has just one, pass --output {shown(chosen.ending.before)}, which goes into it; else "
            "bring one network for each label, with one logit"
        )
    return _plain(editor, chosen)


def _before_softmax(editor: Editor, chosen: Seen, p: Array, images: Array) -> str | None:
    """What goes into the softmax as [batch, classes], if the softmax of it is what comes out."""
    name = chosen.ending.before
    try:
        z = Running(editor, [name])(images)[name]
    except Failed:
        return None
    if not isinstance(z, np.ndarray) or z.dtype.kind != "f" or z.size != p.size or z.shape[:1] != (PROBES,):
        return None
    allowed = ROUNDED if chosen.ending.quantised else EXACT
    if not np.abs(softmax(z.reshape(PROBES, -1).astype(np.float64)) - p).max() < allowed:
        return None
    return _plain(editor, Seen(name, z, chosen.ending, chosen.drops))


def _two_classes(editor: Editor, chosen: Seen) -> str:
    """Logits (0, z) of one logit z, or of its probability."""
    name, cast = chosen.name, chosen.values.dtype != np.float32
    if chosen.ending.kind == "sigmoid" and chosen.ending.operator != "HardSigmoid":
        editor.say(
            f"it ends with a sigmoid ({chosen.ending.operator}): what goes into it is taken as its logit"
        )
        name, cast = chosen.ending.before, True
    elif chosen.ending.kind == "sigmoid" or _one_of_probabilities(editor, chosen):
        row, low = _row(editor, name, 1, cast=cast), editor.hold(np.array(FLOOR, np.float32))
        editor.say(
            f"it gives one probability: the logarithms of it and of the rest are taken, of {FLOOR:g} at least"
        )
        both = editor.after(
            "Concat", editor.after("Sub", editor.hold(np.array(1, np.float32)), row), row, axis=1
        )
        return editor.after("Log", editor.after("Max", both, low))
    editor.say("it gives one number an image, z: two classes are made of it, with the logits 0 and z")
    sides = editor.hold(np.array([[0, 1]], np.float32))
    return editor.after("Mul", _row(editor, name, 1, cast=cast), sides)


CUTS = {"Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Clip", "Identity", "Cast", "Split"}
"""What leaves one probability of several, or of itself."""


def _one_of_probabilities(editor: Editor, chosen: Seen) -> bool:
    """Whether one number an image is cut out of what a sigmoid or a softmax makes."""
    if not bool(((chosen.values >= 0) & (chosen.values <= 1)).all()):
        return False
    node = editor.maker(chosen.name)
    for _ in range(len(CUTS)):
        if node is not None and node.op_type in CUTS:
            node = editor.maker(node.input[0])
    return node is not None and node.op_type in {"Sigmoid", "HardSigmoid", "Softmax"}
