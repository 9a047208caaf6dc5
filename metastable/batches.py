"""What a caller of the library holds, arrays or image files, to a checked batch."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metastable import reading
from metastable.errors import InvalidImage, RequestError, TooLarge
from metastable.images import DEFAULT_LIMITS, STRETCH, Fit, decode

ImageFile = str | os.PathLike[str] | bytes
Images = Tensor | np.ndarray | Sequence[ImageFile]
"""A batch [N, C, H, W] of floats in [0, 1], or image files: their paths, or the bytes of them."""
WANTED = "paths or bytes of image files, or all images as one array [N, C, H, W] of floats in [0, 1]"


def gathered(images: Images, shape: tuple[int, int, int]) -> Images:
    """The images as they were given, an iterator's in a list; nothing is read or copied.

    Raises InvalidImage for what is neither an array [N, *shape] of floats nor a list.
    """
    if isinstance(images, Tensor):
        if images.is_nested or images.layout is not torch.strided:
            raise InvalidImage("the images are a sparse or nested tensor: give a dense one [N, C, H, W]")
        if images.is_meta:
            raise InvalidImage(
                "the images are a tensor on the meta device, which has no values: give one that has"
            )
        _check_axes(images.shape, shape)
        if not images.is_floating_point():
            raise _not_floats(str(images.dtype).removeprefix("torch."))
        return images
    if isinstance(images, np.ma.MaskedArray):
        raise InvalidImage("the images are a masked array: fill what is masked, as in images.filled(0.5)")
    if isinstance(images, np.ndarray):
        _check_axes(images.shape, shape)
        if images.dtype.kind != "f":
            raise _not_floats(images.dtype.name)
        return images
    if isinstance(images, str | bytes | os.PathLike):
        raise InvalidImage("a single file was given: put it into a list, as in defense([path])")
    if not isinstance(images, Iterable):
        raise InvalidImage(f"the images are of type {type(images).__name__}: give {WANTED}")
    return list(images)


def batch_of(images: Images, shape: tuple[int, int, int], fit: Fit = STRETCH) -> Tensor:
    """Images as float32 [N, C, H, W] on the CPU.

    Args:
        images: floats [N, *shape] in [0, 1], of any precision and on any device; or a list of PNG, JPEG, WebP
            or .npy files, by path or as bytes, which are fitted to the shape as the server does it
            (`metastable.images`).
        shape: (C, H, W) of an image.
        fit: how files come to have it.

    Raises:
        InvalidImage: another shape or type, values outside [0, 1] or that are no numbers, a file that cannot
            be read or is damaged; says which of the images.
        MalformedRequest, UnsupportedImage, TooLarge: a file that is empty, of another format, or too large.
    """
    images = gathered(images, shape)
    if isinstance(images, np.ndarray):
        return _checked(_tensor(images))
    if isinstance(images, Tensor):
        return _checked(images.detach().cpu())
    pixels = [_decoded(i, one, shape, fit) for i, one in enumerate(images)]
    return torch.stack(pixels) if pixels else torch.empty(0, *shape)


def _tensor(images: np.ndarray) -> Tensor:
    with np.errstate(over="ignore"):  # what becomes infinite is refused with the rest
        return torch.from_numpy(images.astype(np.float32))  # a copy: torch warns of arrays that are read-only


def _check_axes(found: Sequence[int], shape: tuple[int, int, int]) -> None:
    if tuple(found[1:]) != shape:
        wanted = f"[N, {', '.join(map(str, shape))}]"
        hint = ": add the first axis, as in images[None]" if tuple(found) == shape else ""
        raise InvalidImage(f"the images have shape {list(found)}, this bundle takes {wanted}{hint}")


def _checked(batch: Tensor) -> Tensor:
    # A copy, so that the caller may write into the batch while its images are on their way.
    batch = batch.to(torch.float32).clone(memory_format=torch.contiguous_format)
    # Asked this way round, a NaN is wrong too.
    wrong = ~((batch >= 0) & (batch <= 1)).flatten(1).all(1)
    if bool(wrong.any()):
        which = int(wrong.nonzero()[0])
        least, most = float(batch[which].min()), float(batch[which].max())
        found = "NaN" if math.isnan(least) else f"values from {least:.4g} to {most:.4g}"
        raise InvalidImage(f"image {which} has {found}: every value must lie in [0, 1]")
    return batch


def _not_floats(kind: str) -> InvalidImage:
    return InvalidImage(
        f"the images are of type {kind}: give floats in [0, 1], such as images / 255 for 8-bit values"
    )


def _decoded(index: int, file: ImageFile, shape: tuple[int, int, int], fit: Fit) -> Tensor:
    channels, height, width = shape
    try:
        return decode(_read(file), size=(height, width), channels=channels, fit=fit).pixels
    except RequestError as error:  # of the same kind, and it says which
        raise type(error)(f"image {index}: {error}") from error


def _read(file: ImageFile) -> bytes:
    if isinstance(file, bytes):
        return file
    if not isinstance(file, str | os.PathLike):
        raise InvalidImage(f"a list of images holds a {type(file).__name__}: give {WANTED}")
    path = Path(file)
    try:
        return reading.read(path, DEFAULT_LIMITS.max_bytes)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise TooLarge(
                f"{path} has more than {DEFAULT_LIMITS.max_bytes} bytes: give a smaller file"
            ) from None
        raise InvalidImage(f"{path} cannot be read: {error.strerror}") from None
