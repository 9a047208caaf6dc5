"""What a graph ends with: softmax, sigmoid or argmax, in the ways that exporters write them.

Values are followed backwards through operators that only move, cast or quantise them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.adapt.editor import Editor, attribute

MOVES = {
    *("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Dropout", "Transpose"),
    *("QuantizeLinear", "DequantizeLinear"),
}
CHOOSES = {"ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "Hardmax"}
PICKS = {*MOVES, "Gather", "GatherElements", "ArrayFeatureExtractor", "LabelEncoder", "Slice", "Split", "Add"}


@dataclass(frozen=True)
class Ending:
    """The operator that a value comes of.

    Attributes:
        kind: `softmax`, `log-softmax`, `sigmoid`, `choice`, or `` for anything else.
        before: the value that goes into it.
        operator: its name, for messages.
        quantised: whether the value was rounded to 8 bits on the way.
    """

    kind: str
    before: str
    operator: str
    quantised: bool


def ending(editor: Editor, name: str) -> Ending:
    """What the value `name` ends with."""
    node, quantised = _follow(editor, name, MOVES)
    kind, before = "", name
    if node is not None:
        kind, before = _known(editor, node)
    if not kind:
        chooser, _ = _follow(editor, name, PICKS)
        if chooser is not None and (chooser.op_type in CHOOSES or _labels(editor, chooser, name)):
            kind, before, node = "choice", chooser.input[0], chooser
    return Ending(kind, before, "" if node is None else node.op_type, quantised)


def _follow(editor: Editor, name: str, through: set[str]) -> tuple[Any, bool]:
    """The first node, going backwards, that is none of `through`; and whether any rounded to 8 bits."""
    quantised = False
    for _ in range(64):
        node = editor.maker(name)
        if node is None or node.op_type not in through or not node.input:
            return node, quantised
        quantised |= node.op_type == "DequantizeLinear"
        name = node.input[0]
    return None, quantised


def _labels(editor: Editor, node: Any, name: str) -> bool:
    """Whether this is the first output, the class numbers, of a classifier of scikit-learn."""
    return node.domain == "ai.onnx.ml" and node.op_type.endswith("Classifier") and name in node.output[:1]


def _known(editor: Editor, node: Any) -> tuple[str, str]:
    source = node.input[0] if node.input else ""
    if node.op_type == "Softmax":
        return "softmax", source
    if node.op_type == "LogSoftmax":
        return "log-softmax", source
    if node.op_type in ("Sigmoid", "HardSigmoid"):
        return "sigmoid", source
    if node.op_type == "Exp":
        return "softmax", source  # of log-softmax; where it is none, its values do not add up to one
    if node.op_type in ("Div", "Mul", "Reciprocal"):
        return _divided(editor, node)
    return "", source


def _divided(editor: Editor, node: Any) -> tuple[str, str]:
    """exp(z) / sum(exp(z)) is a softmax, 1 / (1 + exp(-z)) a sigmoid."""
    above = editor.maker(node.input[0])
    if node.op_type != "Reciprocal" and above is not None and above.op_type == "Exp":
        below = editor.maker(node.input[1])
        if below is not None and below.op_type == "Reciprocal":
            below = editor.maker(below.input[0])
        if below is not None and below.op_type in ("ReduceSum", "Clip", "Max", "Add"):
            return "softmax", above.input[0]
    total = editor.maker(node.input[-1])
    one = np.array(1) if node.op_type == "Reciprocal" else editor.constant(node.input[0])
    if node.op_type == "Mul" or one is None or total is None or total.op_type != "Add":
        return "", node.input[0]
    exponents = [m for m in map(editor.maker, total.input) if m is not None and m.op_type == "Exp"]
    inner = editor.maker(exponents[0].input[0]) if exponents else None
    return (
        ("sigmoid", inner.input[0]) if inner is not None and inner.op_type == "Neg" else ("", node.input[0])
    )


def unwrap_maps(editor: Editor) -> None:
    """Outputs that are sequences of maps (ZipMap of skl2onnx) become the tensor that they were made of."""
    for output in editor.graph.output:
        node = editor.maker(output.name)
        if node is not None and node.op_type == "ZipMap":
            output.name = node.input[0]
            output.ClearField("type")


def training(editor: Editor) -> str | None:
    """Which node is in training mode, in words; None if none is."""
    for node in editor.graph.node:
        if node.op_type == "BatchNormalization" and (
            attribute(node, "training_mode", 0) or len([one for one in node.output if one]) > 1
        ):
            return "batch norm in training mode (it takes its mean over the batch)"
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            mode = editor.constant(node.input[2])
            if mode is None or bool(mode.any()):
                return "dropout in training mode (it draws random numbers)"
    return None
