"""How a picture becomes an image of given height and width: what a classifier was trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

MODES = ("stretch", "crop")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
LEAST_SHARE = 0.1
_REACH = {"nearest": 1, "bilinear": 1, "bicubic": 2, "lanczos": 3}  # of a filter, in samples of the coarser
_WHOLE = 2**21
"""Pixels of a resized picture that is made before it is cropped; of a larger one only the crop is made."""
_LONG = 2**14
"""Of a longer side blocks are averaged first: Pillow's filter weights, and what lies between its two passes,
grow with it, to 500 MB and more at 16 M."""


@dataclass(frozen=True)
class Fit:
    """What is done to a picture of another size; resizing is antialiased, as Pillow's is.

    `stretch` resizes to round(height / share) x round(width / share) whatever the aspect ratio.  `crop` keeps
    it: the picture is resized until it just covers these sides, one of them exactly (for square images the
    shorter one is round(size / share)), the other rounded down.  Either then takes the middle height x
    width, where an odd rest is halved as torchvision rounds it.  A picture that has the size already is taken
    as it is, so that whoever knows it can send exact pixels.

    Attributes:
        mode: one of MODES.
        share: of the resized sides that are kept, in [LEAST_SHARE, 1].
        interpolation: one of INTERPOLATIONS.

    Raises ValueError for other values.
    """

    mode: str = "stretch"
    share: float = 1.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"a fit's mode must be one of {MODES}, its interpolation of {(*INTERPOLATIONS,)}"
            )
        if not LEAST_SHARE <= self.share <= 1:
            raise ValueError(f"a fit's share must lie in [{LEAST_SHARE}, 1], not be {self.share:g}")

    def resized(self, picture: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that a picture gets before its middle `size` is taken; all are (height, width)."""
        if picture == size:
            return size
        rows, columns = picture
        tall, wide = (round(side / self.share) for side in size)
        if self.mode == "stretch":
            return tall, wide
        if rows * wide <= columns * tall:  # whole numbers: a float could end one pixel short
            return tall, columns * tall // rows
        return rows * wide // columns, wide

    def cuts(self, picture: tuple[int, int], size: tuple[int, int]) -> bool:
        """Whether parts of a picture are left out."""
        return self.resized(picture, size) != size

    def applied(self, plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A plane [H, W], uint8 or float32, as [height, width] of that type; floats may overshoot."""
        rows, columns = plane.shape
        resized, resample = self.resized((rows, columns), size), INTERPOLATIONS[self.interpolation]
        gap = 3.0 if self == STRETCH or max(rows, columns) > _LONG else None
        corner = [round((have - want) / 2) for have, want in zip(resized, size, strict=True)]
        if math.prod(resized) <= _WHOLE:
            whole = Image.fromarray(np.ascontiguousarray(plane)).resize(
                resized[::-1], resample, reducing_gap=gap
            )
            return np.asarray(whole)[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        reach = _REACH[self.interpolation]
        (top, bottom, *tall), (left, right, *wide) = (
            _span(*axis, reach) for axis in zip(corner, size, resized, (rows, columns), strict=True)
        )
        part = Image.fromarray(np.ascontiguousarray(plane[top:bottom, left:right]))
        box = (wide[0], tall[0], wide[1], tall[1])
        return np.asarray(part.resize(size[::-1], resample, box, reducing_gap=gap))


STRETCH = Fit()
"""Of bundles that declare none.  It works in float32 and averages blocks before it shrinks much."""


def _span(start: int, count: int, resized: int, length: int, reach: int) -> tuple[int, int, float, float]:
    """What of an axis of `length` makes `count` of its `resized` samples from `start`.

    First and last (exclusive) of its samples, all that the filter reads among them, and where in these the
    wanted ones begin and end.  Pillow keeps the latter in float32: it is not to be far from zero.
    """
    scale = length / resized
    low, high = start * scale, (start + count) * scale
    margin = math.ceil(reach * max(scale, 1.0)) + 1
    first, last = max(0, math.floor(low) - margin), min(length, math.ceil(high) + margin)
    return first, last, low - first, min(high - first, last - first)
