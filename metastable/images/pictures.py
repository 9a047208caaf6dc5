"""PNG, JPEG and WebP files: their headers are checked, and Pillow is given what makes the pixels alone."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from metastable.errors import InvalidImage
from metastable.images.limits import ImageLimits, check_size
from metastable.images.raster import Raster

_MAX_SCANS = 50  # a progressive JPEG has about 10; each is a pass over all pixels for a few bytes of file
_MAX_SEGMENTS, _MAX_CHUNKS = 10_000, 100_000
# A marker with a body: no filler, no stuffed byte, no restart.
_SEGMENT = re.compile(rb"(?s)\xff([^\x00\x01\xff\xd0-\xd8])")
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_KEPT = {*_SOF, 0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}  # frame, tables, restarts, JFIF, Adobe
# EXIF orientation: steps along rows and columns, after swapping the axes if it is above 4.
_FLIPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}


@dataclass(frozen=True)
class _File:  # a container whose header was checked
    data: bytes  # only what Pillow needs for the pixels
    size: tuple[int, int]  # width, height
    exif: bytes = b""
    key: tuple[int, ...] = ()  # the PNG colour that means transparent, in Pillow's sample values
    notes: tuple[str, ...] = ()


def read_picture(kind: str, data: bytes, limits: ImageLimits) -> Raster:
    """The samples of a file of this kind, upright; RequestError above the limits, any error of a parser."""
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
    return Raster(samples, 65535 if mode == "I;16" else 255, alpha, tuple(notes))


def declared(kind: str, data: bytes, limits: ImageLimits) -> int:
    """Pixels that the header of a file of this kind declares.

    Raises RequestError above the limits, and any error of a parser where it is damaged.
    """
    if kind == "PNG":  # without the checksums of all its chunks
        width, height = struct.unpack_from(">II", data, 16)
        check_size(width, height, limits)
    else:
        width, height = {"JPEG": _parse_jpeg, "WEBP": _parse_webp}[kind](data, limits).size
    return int(width * height)


def _parse_png(data: bytes, limits: ImageLimits) -> _File:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    size = check_size(width, height, limits)
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
    for _ in range(_MAX_CHUNKS):
        if b"IEND" in chunks:
            return {**chunks, b"IDAT": b"".join(pixels)}
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
    raise ValueError("more chunks than any picture has")


def _parse_jpeg(data: bytes, limits: ImageLimits) -> _File:
    kept, size, exif, at = [b"\xff\xd8"], None, b"", 2
    for _ in range(_MAX_SEGMENTS):
        found = _SEGMENT.search(data, at)
        if found is None:
            raise ValueError("no scan")
        at = found.start(1)
        marker = data[at]
        if marker == 0xDA:
            break
        end = at + 1 + int(struct.unpack_from(">H", data, at + 1)[0])
        if end < at + 3 or end > len(data) or (marker in _SOF and size):
            raise ValueError("a segment of impossible length, or a second frame")
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, at + 4)
            size = check_size(width, height, limits)
        if marker == 0xE1 and data.startswith(b"Exif\0\0", at + 3):
            exif = exif or data[at + 3 : end]
        if marker in _JPEG_KEPT:
            kept.append(data[at - 1 : end])
        at = end
    else:
        raise ValueError("more segments than any picture has")
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
    return _File(data, check_size(width, height, limits))


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
