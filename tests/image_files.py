"""Image files to test with, whole and made by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from metastable.errors import RequestError
from metastable.images import ImageLimits, decode

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
GREY = RGB[..., 0]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def save(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version, allow_pickle=True)
    return stream.getvalue()


def npy_raw(header: str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin-1")
    return (
        b"\x93NUMPY"
        + bytes(version)
        + struct.pack("<H" if version == (1, 0) else "<I", len(text))
        + text
        + body
    )


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG by hand: rows as they are in the file, without the filter bytes."""
    stride = len(rows) // max(height, 1)
    raw = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG_MAGIC + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def expected(hwc: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] or [H, W] as the float32 [3, H, W] that decode owes."""
    full = hwc if hwc.ndim == 3 else np.repeat(hwc[..., None], 3, axis=-1)
    return torch.from_numpy(np.moveaxis(full, -1, 0).copy()).float() / 255.0


def refused(data: bytes, error: type[RequestError], limits: ImageLimits | None = None) -> str:
    with pytest.raises(error) as caught:
        decode(data, limits=limits or ImageLimits())
    message = str(caught.value)
    assert type(caught.value) is error
    assert message.isascii()
    assert message.endswith(".")
    assert ": " in message or ". " in message  # what is wrong, then what to do
    return message


FILES = {
    "png": save(RGB),
    "png grey": save(GREY),
    "png palette": save(Image.fromarray(RGB).quantize(16)),
    "jpeg": save(RGB, "JPEG", exif=exif(6)),
    "jpeg progressive": save(RGB, "JPEG", progressive=True),
    "jpeg cmyk": save(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "webp": save(RGB, "WEBP"),
    "webp lossless": save(RGB, "WEBP", lossless=True, exif=exif(3)),
    "webp alpha": save(np.dstack([RGB, GREY]), "WEBP", lossless=True),
    "npy": npy(RGB),
    "npy float": npy(np.moveaxis(RGB, -1, 0).astype(np.float32) / 255, (2, 0)),
}
