"""The forms that the declared shape of a graph's input allows: layout, channels, height and width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import TensorProto

from export.adapt.editor import FLOAT, Editor
from export.adapt.reading import shown
from export.adapt.values import SIDE, Wishes
from metastable.errors import BundleError

SIZES = (224, 32, 28, 64, 96, 128, 256, 299, 384)
"""Tried, in this order, where a graph leaves height and width open."""
FLOATS: dict[int, str] = {FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64"}
WHOLE: dict[int, str] = {TensorProto.UINT8: "uint8", TensorProto.INT32: "int32", TensorProto.INT64: "int64"}


@dataclass(frozen=True)
class Form:
    """How the graph's own input is laid out.

    Attributes:
        layout: `nchw`, `nhwc`, or `flat` and `flat-nchw` for a row of all pixels.
        channels, height, width: of an image.
        batch: how many images it takes, None where that is open.
        kind: an element type of onnx.TensorProto.
    """

    layout: str
    channels: int
    height: int
    width: int
    batch: int | None
    kind: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def forms(editor: Editor, wishes: Wishes) -> Iterator[Form]:
    """The forms that the declared shape allows, the likeliest first."""
    file, value = editor.file, editor.graph.input[0]
    kind = value.type.tensor_type
    if kind.elem_type not in {*FLOATS, *WHOLE}:
        raise BundleError(
            f"{file}: its input {shown(value.name)} is of a type that holds no images here; export it with "
            "float32 images (or float16, float64, uint8)"
        )
    dims = [one.dim_value if one.dim_value > 0 else None for one in kind.shape.dim] or [None] * 4
    if any(one is not None and one > SIDE**2 * 3 for one in dims):
        raise BundleError(f"{file}: its input has {max(one or 0 for one in dims)} numbers along one axis")
    batch, *rest = dims
    if len(rest) == 1 and rest[0] is not None:
        yield _flat(file, rest[0], batch, kind.elem_type, wishes)
        return
    if len(rest) != 3:
        raise BundleError(
            f"{file} takes an input of {len(dims)} axes, and images are [batch, channels, height, width] or "
            "[batch, height, width, channels]: export it with a batch axis first"
        )
    found = 0
    for layout, channels in _layouts(rest, wishes):
        height, width = rest[1:] if layout == "nchw" else rest[:2]
        for h, w in _sizes(height, width, wishes, file):
            found += 1
            yield Form(layout, channels, h, w, batch, kind.elem_type)
    if not found:
        raise BundleError(_no_channels(file, rest, wishes))


def _layouts(rest: list[int | None], wishes: Wishes) -> Iterator[tuple[str, int]]:
    for layout, have in (("nchw", rest[0]), ("nhwc", rest[2])):
        if wishes.layout in (None, layout):
            yield from ((layout, c) for c in (3, 1) if have == c)
    # Open channels, where no other axis says that it holds them.
    for layout, have, other in (("nchw", rest[0], rest[2]), ("nhwc", rest[2], rest[0])):
        if wishes.layout == layout or (wishes.layout is None and other not in (1, 3)):
            yield from ((layout, c) for c in (3, 1) if have is None)


def _no_channels(file: str, rest: list[int | None], wishes: Wishes) -> str:
    ends = {"nchw": [rest[0]], "nhwc": [rest[2]]}.get(wishes.layout or "", [rest[0], rest[2]])
    if 4 in ends:
        return (
            f"{file} takes 4 channels (RGBA): a photograph has no alpha channel to purify; export the "
            "network with 3 channels, or put a layer before it that adds a full alpha"
        )
    text = " x ".join("?" if one is None else str(one) for one in rest)
    layout = f" as {wishes.layout}" if wishes.layout else ""
    return f"{file} takes {text} an image{layout}: images of 1 or 3 channels are purified"


def _sizes(height: int | None, width: int | None, wishes: Wishes, file: str) -> list[tuple[int, int]]:
    if wishes.size is None and height is None and width is None:
        return [(one, one) for one in SIZES]
    wished = wishes.size or (height or width or 0, width or height or 0)
    for have, want in zip((height, width), wished, strict=True):
        if have is not None and have != want:
            raise BundleError(
                f"{file} takes {height or 'any'} x {width or 'any'} (height x width), not "
                f"{wished[0]} x {wished[1]}"
            )
    if not all(1 <= one <= SIDE for one in wished):
        raise BundleError(f"{file}: a height and a width of 1 to {SIDE} are purified, not {wished}")
    return [wished]


def _flat(file: str, numbers: int, batch: int | None, kind: int, wishes: Wishes) -> Form:
    """Rows of pixels, as classifiers of scikit-learn take them."""
    for channels in (1, 3):
        side = math.isqrt(numbers // channels)
        h, w = wishes.size or (side, side)
        if channels * h * w == numbers and min(h, w) > 0 and max(h, w) <= SIDE:
            planes = wishes.layout == "nchw" and channels == 3
            return Form("flat-nchw" if planes else "flat", channels, h, w, batch, kind)
    raise BundleError(
        f"{file} takes rows of {numbers} numbers, which is no square image of 1 or 3 channels: give its "
        "height and width (--size), if it takes images"
    )
