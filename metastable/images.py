"""What a client sent, bytes of a PNG, JPEG, WebP or .npy file, to a checked image tensor.

The bytes are hostile until shown otherwise. The size is checked in the header first; Pillow then gets only
the parts that make pixels: no text, colour profile, EXIF or animation chunk of a PNG or JPEG, so that none of
them can be a bomb, and nothing is left to warn about (muting warnings is not thread safe: their filters are
global). Colour profiles and gamma are ignored. An image of another size is resized; its aspect ratio is not
kept. A .npy shape that can be read as both HWC and CHW, such as [3, 32, 3], is HWC.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image

from metastable.errors import InvalidImage, MalformedRequest, RequestError, TooLarge, UnsupportedImage

PIXEL_CEILING = 89_478_485  # above this Pillow itself warns of a decompression bomb
_MAGIC = re.compile(
    rb"(?s)(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<WEBP>RIFF.{4}WEBP)|(?P<NPY>\x93NUMPY)"
)
_MAX_SCANS = 50  # a progressive JPEG has about 10; each is a pass over all pixels for a few bytes of file
_MAX_NPY_HEADER = 10_000  # bytes; numpy's own limit
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_KEPT = {*_SOF, 0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}  # frame, tables, restarts, JFIF, Adobe
# EXIF orientation: steps along rows and columns, after swapping the axes if it is above 4.
_FLIPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
# The only headers that numpy's reader gets to see: on others it may warn, or recurse deeply. `*+` never
# backtracks, so that 10 000 spaces take linear time.
_ENTRY = (
    rb"\s*+['\"](?:descr|fortran_order|shape)['\"]\s*+:\s*+"
    rb"(?:['\"][<>|=]?[bBiufcmMOSUV?]\d{0,4}['\"]|True|False|\((?:\s*+-?\d{1,15}\s*+,?)*+\s*+\))\s*+"
)
_NPY_HEADER = re.compile(rb"\s*+\{%b,%b,%b(?:,\s*+)?\}\s*+" % (_ENTRY, _ENTRY, _ENTRY))


@dataclass(frozen=True)
class ImageLimits:
    """What a client may send; ValueError if a limit is not positive or above PIXEL_CEILING."""

    max_bytes: int = 2_000_000
    max_pixels: int = 8_000_000  # width * height, of the header; decoding so many takes about 300 MB

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not 1 <= self.max_pixels <= PIXEL_CEILING:
            raise ValueError(f"max_bytes must be positive and max_pixels in 1..{PIXEL_CEILING}")


DEFAULT_LIMITS = ImageLimits()
Box = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image."""


@dataclass(frozen=True)
class DecodedImage:
    """An image as the networks take it, and what was done to get there."""

    pixels: torch.Tensor  # float32 [C, H, W] in [0, 1], contiguous
    format: str  # "PNG", "JPEG", "WEBP", "NPY"
    original_size: tuple[int, int]  # width, height as sent (after EXIF rotation)
    resized: bool
    notes: tuple[str, ...]  # short sentences on what was changed


@dataclass(frozen=True)
class _File:  # a container whose header was checked
    data: bytes  # only what Pillow needs for the pixels
    size: tuple[int, int]  # width, height
    exif: bytes = b""
    key: tuple[int, ...] = ()  # the PNG colour that means transparent, in Pillow's sample values
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Raster:  # decoded, not yet scaled
    samples: np.ndarray  # [H, W, 1 or 3] from 0 to `white`
    white: int
    alpha: np.ndarray | None  # [H, W] from 0 to 255, opaque
    notes: tuple[str, ...]

    def cut(self, box: Box) -> _Raster:
        rows, columns = slice(box[0], box[0] + box[2]), slice(box[1], box[1] + box[3])
        alpha = None if self.alpha is None else self.alpha[rows, columns]
        return replace(self, samples=self.samples[rows, columns], alpha=alpha)

    def plane(self, channel: int, height: int, width: int) -> np.ndarray:
        """One channel, float32 [height, width] in [0, 1]: one at a time keeps the peak memory low."""
        plane = self.samples[..., channel].astype(np.float32) / np.float32(self.white)
        if self.alpha is not None:
            alpha = self.alpha.astype(np.float32) / np.float32(255)
            plane = np.clip(plane * alpha + (1 - alpha), 0, 1)
        if plane.shape == (height, width):
            return plane
        # The gap averages blocks first: without it a 16 000 000 x 1 image needs 500 MB of filter weights.
        image = Image.fromarray(np.ascontiguousarray(plane))
        scaled = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return np.asarray(scaled).clip(0, 1)


def decode(
    data: bytes,
    *,
    size: int | tuple[int, int] | None = 32,
    channels: int = 3,
    limits: ImageLimits = DEFAULT_LIMITS,
    window: Callable[[int, int], Box] | None = None,
) -> DecodedImage:
    """Read an image file into float32 [channels, height, width] in [0, 1]; channels is 1 or 3.

    `size` is height and width, or one number for both; `window` chooses, of the height and width of what was
    sent, the part that is taken.

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
        raster = _read_npy(data, limits) if kind == "NPY" else _read_picture(kind, data, limits)
    except (RequestError, MemoryError):  # too little memory is the server's trouble, not the file's
        raise
    except Exception as error:  # parsers of damaged files raise almost anything
        raise InvalidImage(f"The {kind} file is truncated or damaged: check it and send it again.") from error
    height, width, _ = raster.samples.shape
    part = raster if window is None else raster.cut(window(height, width))
    *cut, found = part.samples.shape
    tall, wide = sizes or cut
    pixels, notes = np.stack([part.plane(channel, tall, wide) for channel in range(found)]), raster.notes
    if found > channels:  # in float64, so that equal red, green and blue come out as that same float32
        pixels = np.tensordot([[0.299, 0.587, 0.114]], pixels.astype(np.float64), 1).astype(np.float32)
        notes = (*notes, "colour reduced to luma")
    pixels = np.repeat(pixels, channels // len(pixels), axis=0)
    resized = tuple(cut) != (tall, wide)
    return DecodedImage(torch.from_numpy(pixels), kind, (width, height), resized, notes)


def _check_size(width: int, height: int, limits: ImageLimits) -> tuple[int, int]:
    if width < 1 or height < 1:
        raise InvalidImage(f"The image is {width} x {height} pixels: send one that has pixels.")
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"The image is {width} x {height}, above {limits.max_pixels} pixels: send a smaller one."
        )
    return width, height


def _read_picture(kind: str, data: bytes, limits: ImageLimits) -> _Raster:
    file = {"PNG": _parse_png, "JPEG": _parse_jpeg, "WEBP": _parse_webp}[kind](data, limits)
    notes = [*file.notes]
    with Image.open(io.BytesIO(file.data), formats=[kind]) as image:
        if image.size != file.size:
            raise ValueError("Pillow reads another size than was checked")
        image.load()
        if getattr(image, "is_animated", False):
            notes.append("first frame of an animation")
        if image.mode == "CMYK":
            notes.append("CMYK converted to RGB")
        palette = "RGBA" if "transparency" in image.info else "RGB"
        mode = {"1": "L", "CMYK": "RGB", "P": palette}.get(image.mode, image.mode)
        samples = np.asarray(image if mode == image.mode else image.convert(mode))
        samples = samples.reshape(image.height, image.width, -1)
        turn = _orientation(file.exif or image.info.get("exif", b""))
    if file.key:
        opaque = np.where((samples == file.key).all(axis=-1, keepdims=True), 0, 255)
        samples = np.concatenate([samples, opaque.astype(samples.dtype)], axis=-1)
    if turn in _FLIPS:
        rows, columns = _FLIPS[turn]
        samples = (samples.swapaxes(0, 1) if turn > 4 else samples)[::rows, ::columns]
        notes.append("rotated by EXIF")
    alpha = None
    if file.key or mode.endswith("A"):
        samples, alpha = samples[..., :-1], samples[..., -1]
        notes += ["alpha composited on white"] if alpha.min() < 255 else []
    return _Raster(samples, 65535 if mode == "I;16" else 255, alpha, tuple(notes))


def _parse_png(data: bytes, limits: ImageLimits) -> _File:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    size = _check_size(width, height, limits)
    chunks = _png_chunks(data)
    notes = ["first frame of an animation"] if b"acTL" in chunks else []
    if depth == 16 and colour != 0:  # Pillow keeps the high byte
        notes.append("16-bit colour reduced to 8 bits")
    key: tuple[int, ...] = ()
    if b"tRNS" in chunks and colour in (0, 2):  # Pillow does not scale the key as it scales the samples
        key = struct.unpack_from(">H" if colour == 0 else ">3H", chunks[b"tRNS"][:-4], 8)
        top = (1 << min(depth, 8)) - 1
        if depth < 16:
            key = tuple((sample & top) * 255 // top for sample in key)
        elif colour == 2:
            key = tuple(sample >> 8 for sample in key)
    names = [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"] if colour == 3 else [b"IHDR", b"IDAT", b"IEND"]
    kept = [chunks[name] for name in names if name in chunks or name != b"tRNS"]
    return _File(b"".join([data[:8], *kept]), size, chunks.get(b"eXIf", b"")[8:-4], key, tuple(notes))


def _png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The first chunk of each kind up to IEND, and all IDATs; struct.error or ValueError if damaged."""
    at, chunks, pixels = 8, dict[bytes, bytes](), list[bytes]()
    while b"IEND" not in chunks:
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        # Pillow checks no checksum of pixels, so a damaged image would pass for another one.
        checksum = struct.unpack_from(">I", data, at + 8 + length)[0]
        if zlib.crc32(chunk[4:-4]) != checksum or (name == b"IHDR") != (at == 8):
            raise ValueError("a wrong checksum, or an IHDR that is not first or not alone")
        chunks.setdefault(name, chunk)
        if name == b"IDAT":
            pixels.append(chunk)
        at += len(chunk)
    return {**chunks, b"IDAT": b"".join(pixels)}


def _parse_jpeg(data: bytes, limits: ImageLimits) -> _File:
    kept, size, exif, at = [b"\xff\xd8"], None, b"", 2
    while True:
        at = data.index(b"\xff", at) + 1
        marker = data[at]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # filler, or a marker without a body
            continue
        if marker == 0xDA:
            break
        end = at + 1 + int(struct.unpack_from(">H", data, at + 1)[0])
        if end < at + 3 or end > len(data) or (marker in _SOF and size):
            raise ValueError("a segment of impossible length, or a second frame")
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, at + 4)
            size = _check_size(width, height, limits)
        if marker == 0xE1 and data.startswith(b"Exif\0\0", at + 3):
            exif = exif or data[at + 3 : end]
        if marker in _JPEG_KEPT:
            kept.append(data[at - 1 : end])
        at = end
    if size is None:
        raise ValueError("no frame")
    if data.count(b"\xff\xda", at - 1) > _MAX_SCANS:
        raise InvalidImage(f"The JPEG has more than {_MAX_SCANS} scans: save it as a baseline JPEG.")
    return _File(b"".join([*kept, data[at - 1 :]]), size, exif)


def _parse_webp(data: bytes, limits: ImageLimits) -> _File:
    if data[12:16] == b"VP8X":  # 24 bits each, less one
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    elif data[12:16] == b"VP8L":  # 14 bits each, less one
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return _File(data, _check_size(width, height, limits))


def _orientation(exif: bytes) -> int:
    """EXIF orientation; 1, upright, where there is none or the block is damaged: pixels matter more."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = ">" if tiff.startswith(b"MM") else "<"
    with contextlib.suppress(struct.error):
        start = struct.unpack_from(order + "I", tiff, 4)[0]
        for i in range(struct.unpack_from(order + "H", tiff, start)[0]):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * i)
            if tag == 0x0112:
                return int(value)
    return 1


def _read_npy(data: bytes, limits: ImageLimits) -> _Raster:
    shape, fortran, dtype, start = _npy_header(data)
    if (dtype.kind, dtype.itemsize) not in (("u", 1), ("f", 2), ("f", 4), ("f", 8)):
        raise InvalidImage(f"The .npy type is {dtype.name}: send uint8, float16, float32 or float64.")
    last = len(shape) == 3 and shape[2] in (1, 3)
    first = len(shape) == 3 and shape[0] in (1, 3) and not last
    if min(shape, default=0) < 1 or not (len(shape) == 2 or first or last):
        raise InvalidImage(f"The .npy array has the shape {shape}: send [H, W], [H, W, 3] or [3, H, W].")
    declared, held = math.prod(shape) * dtype.itemsize, len(data) - start
    if declared != held:
        raise InvalidImage(f"The .npy is truncated or damaged, {held} of {declared} bytes: send it again.")
    height, width = shape[1:] if first else shape[:2]
    _check_size(width, height, limits)
    array = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    with np.errstate(all="ignore"):  # comparing a signalling NaN would warn
        if dtype.kind == "f" and not ((array >= 0) & (array <= 1)).all():
            found = f"values from {array.min():.4g} to {array.max():.4g}"
            found = found if np.isfinite(array).all() else "NaN or infinity"
            raise InvalidImage(f"The .npy array has {found}: scale floats to [0, 1] or send uint8.")
    samples = np.moveaxis(array, 0, -1) if first else array.reshape(height, width, -1)
    notes = ("float64 rounded to float32",) if dtype.itemsize == 8 else ()
    return _Raster(samples, 255 if dtype.kind == "u" else 1, None, notes)


def _npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, dtype, and where the pixels start; nothing is unpickled."""
    major, minor = data[6], data[7]
    if (major, minor) not in ((1, 0), (2, 0)):
        raise InvalidImage(f"The .npy file has version {major}.{minor}: send version 1.0 or 2.0.")
    start = 10 if major == 1 else 12
    end = start + int(struct.unpack_from("<H" if major == 1 else "<I", data, 8)[0])
    if end - start > _MAX_NPY_HEADER or not _NPY_HEADER.fullmatch(data, start, end):
        raise InvalidImage("The .npy header is damaged or not of a plain array: save it with numpy.save.")
    read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, fortran, dtype = read(io.BytesIO(data[8:end]), max_header_size=_MAX_NPY_HEADER)
    return shape, fortran, dtype, end
