"""An image file to a tensor."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from metastable.errors import InvalidImage, MalformedRequest, RequestError, TooLarge, UnsupportedImage
from metastable.images.fit import STRETCH, Fit
from metastable.images.limits import DEFAULT_LIMITS, ImageLimits
from metastable.images.npy import read_npy
from metastable.images.pictures import declared, read_picture
from metastable.images.raster import Box

_MAGIC = re.compile(
    rb"(?s)(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<WEBP>RIFF.{4}WEBP)|(?P<NPY>\x93NUMPY)"
)


@dataclass(frozen=True)
class DecodedImage:
    """An image as the networks take it, and what was done to get there."""

    pixels: torch.Tensor  # float32 [C, H, W] in [0, 1], contiguous
    format: str  # "PNG", "JPEG", "WEBP", "NPY"
    original_size: tuple[int, int]  # width, height as sent (after EXIF rotation)
    resized: bool
    notes: tuple[str, ...]  # short sentences on what was changed


def pixels_of(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """How many pixels a file declares, by its header alone; 0 for what `decode` refuses by its header."""
    magic = _MAGIC.match(data)
    if magic is None:
        return 0
    if magic.lastgroup == "NPY":
        return len(data)  # of one byte at least
    try:
        return declared(str(magic.lastgroup), data, limits)
    except Exception:  # parsers of damaged files raise almost anything
        return 0


def decode(
    data: bytes,
    *,
    size: int | tuple[int, int] | None = 32,
    channels: int = 3,
    fit: Fit = STRETCH,
    limits: ImageLimits = DEFAULT_LIMITS,
    window: Callable[[int, int], Box] | None = None,
) -> DecodedImage:
    """Read an image file into float32 [channels, height, width] in [0, 1]; channels is 1 or 3.

    `size` is height and width, or one number for both, and `fit` how an image comes to have it; `window`
    chooses, of the height and width of what was sent, the part that is taken.

    Without a size the image keeps its own. 8-bit samples become value / 255 and 16-bit grey value / 65535,
    exactly; floats of a .npy file stay as they are. Raises MalformedRequest if data is empty, TooLarge above
    the limits, UnsupportedImage if the first bytes are of another format, InvalidImage for a damaged file or
    impossible values; nothing else, whatever the bytes. ValueError is for a wrong `size` or `channels`.
    """
    sizes = (size, size) if isinstance(size, int) else size
    if channels not in (1, 3) or (sizes is not None and min(sizes) < 1):
        raise ValueError("channels must be 1 or 3 and size positive")
    if not data:
        raise MalformedRequest("The image is empty: send the bytes of a PNG, JPEG, WebP or .npy file.")
    if len(data) > limits.max_bytes:
        raise TooLarge(f"The image has {len(data)} bytes, above {limits.max_bytes}: send a smaller file.")
    magic = _MAGIC.match(data)  # a client's content type is not to be trusted
    if magic is None:
        raise UnsupportedImage("The image format is not supported: send a PNG, JPEG, WebP or .npy file.")
    kind = str(magic.lastgroup)
    try:
        raster = read_npy(data, limits) if kind == "NPY" else read_picture(kind, data, limits)
    except (RequestError, MemoryError):  # too little memory is the server's trouble, not the file's
        raise
    except Exception as error:  # parsers of damaged files raise almost anything
        raise InvalidImage(f"The {kind} file is truncated or damaged: check it and send it again.") from error
    height, width, _ = raster.samples.shape
    part = raster if window is None else raster.cut(window(height, width))
    rows, columns, found = part.samples.shape
    if sizes is None:
        sizes, fit = (rows, columns), STRETCH
    pixels, notes = np.stack([part.plane(channel, sizes, fit) for channel in range(found)]), raster.notes
    if found > channels:  # in float64, so that equal red, green and blue come out as that same float32
        pixels = np.tensordot([[0.299, 0.587, 0.114]], pixels.astype(np.float64), 1).astype(np.float32)
        notes = (*notes, "colour reduced to luma")
    pixels = np.repeat(pixels, channels // len(pixels), axis=0)
    cropped = fit.cuts((rows, columns), sizes)
    if cropped:
        notes = (*notes, "cropped to the middle")
    resized = cropped or (rows, columns) != sizes
    return DecodedImage(torch.from_numpy(pixels), kind, (width, height), resized, notes)
