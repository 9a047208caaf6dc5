"""What a client may send, in bytes and pixels."""

from __future__ import annotations

from dataclasses import dataclass

from metastable.errors import InvalidImage, TooLarge

PIXEL_CEILING = 89_478_485  # above this Pillow itself warns of a decompression bomb
LONGEST = 65_535
"""Of a side, which is a JPEG's own limit: Pillow takes a row at a time, and 8 million rows take seconds."""


@dataclass(frozen=True)
class ImageLimits:
    """What a client may send; ValueError if a limit is not positive or above PIXEL_CEILING."""

    max_bytes: int = 2_000_000
    max_pixels: int = 8_000_000  # width * height, of the header; decoding so many takes about 300 MB

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not 1 <= self.max_pixels <= PIXEL_CEILING:
            raise ValueError(f"max_bytes must be positive and max_pixels in 1..{PIXEL_CEILING}")


DEFAULT_LIMITS = ImageLimits()


def check_size(width: int, height: int, limits: ImageLimits) -> tuple[int, int]:
    """Width and height of a header as they are; InvalidImage if a side is 0, TooLarge above the limits."""
    if width < 1 or height < 1:
        raise InvalidImage(f"The image is {width} x {height} pixels: send one that has pixels.")
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"The image is {width} x {height}, above {limits.max_pixels} pixels: send a smaller one."
        )
    if max(width, height) > LONGEST:
        raise TooLarge(
            f"The image is {width} x {height}, above {LONGEST} pixels on a side: send a smaller one."
        )
    return width, height
