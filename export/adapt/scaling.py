"""Whether a graph scales its images itself, and so which values it takes: seen in its first operators."""

from __future__ import annotations

import numpy as np

from export.adapt.editor import Editor

UNIT, BYTES = (0.0, 1.0), (0.0, 255.0)
MOVES = {"Transpose", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"}
LARGE_MEAN, LARGE_SCALE, SMALL_FACTOR = 1.5, 50.0, 0.05
"""A mean above the first, a divisor above the second or a factor below the third is for values up to 255."""


def inside(editor: Editor, name: str) -> tuple[float, float] | None:
    """The range of the values that the graph takes, None if its first operators do not say."""
    while len(users := editor.users(name)) == 1:
        node = users[0]
        if node.op_type in MOVES and node.input[0] == name:
            name = node.output[0]
            continue
        others = [one for one in node.input if one != name]
        if node.op_type == "BatchNormalization" and len(node.input) == 5:
            others, kind = [node.input[3]], "Sub"
        else:
            kind = node.op_type
        value = editor.constant(others[0]) if len(others) == 1 else None
        if kind not in ("Sub", "Add", "Div", "Mul") or value is None or value.size == 0 or value.size > 4096:
            break
        size = float(np.abs(value.astype(np.float64)).max())
        if kind in ("Sub", "Add"):
            return BYTES if size > LARGE_MEAN else UNIT
        if (kind == "Div" and size >= LARGE_SCALE) or (kind == "Mul" and 0 < size <= SMALL_FACTOR):
            return BYTES
        name = node.output[0]
    return None
