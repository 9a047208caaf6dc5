"""What a caller has, as the bytes that are sent."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from metastable import reading
from metastable.walk import walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

Image: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | NDArray[Any]"
"""The bytes of a PNG, JPEG, WebP or .npy file, the path of one, or an array [H, W], [H, W, 3] or
[3, H, W] of uint8, or of floats in [0, 1]."""
Images: TypeAlias = "str | os.PathLike[str] | Iterable[Image]"
"""A folder, or images."""
MOST_BYTES = 100_000_000
"""Of a file that is sent: what is too large for a server, it says itself."""


def body_of(image: Image) -> bytes:
    """The body of a request.

    Raises OSError, with the file's name, for one that cannot be read, ValueError for an array of objects, and
    TypeError for what is no image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            return reading.read(path, MOST_BYTES)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    if not hasattr(image, "__array__"):
        raise TypeError(f"an image is bytes, a path or a NumPy array, not {type(image).__name__}")
    import numpy as np  # not before it is needed: it takes longer to import than all the rest

    buffer = io.BytesIO()
    np.save(buffer, np.asarray(image), allow_pickle=False)
    return buffer.getvalue()


def listed(images: Images) -> list[Image]:
    """The images, or the pictures of a folder in the order of their names.

    Raises DataError for a folder that is none or holds no pictures, TypeError for what is no list.
    """
    if isinstance(images, str | os.PathLike):
        return list(pictures(images))
    if isinstance(images, bytes | bytearray | memoryview):
        raise TypeError("a single image was given: put it into a list")
    return list(images)


def pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures in a folder and its sub-folders, in the order of their names.

    Raises DataError for a folder that is none or holds no pictures.
    """
    return [Path(folder, name) for name in walk(Path(folder))[0]]
