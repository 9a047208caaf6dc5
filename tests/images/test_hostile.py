"""metastable.images: bombs, damage and random bytes are refused in one sentence, and cost nothing."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from metastable.errors import InvalidImage, RequestError, TooLarge
from metastable.images import ImageLimits, decode, pixels_of
from tests.image_files import (
    FILES,
    PNG_MAGIC,
    RGB,
    chunk,
    expected,
    npy,
    npy_raw,
    png,
    refused,
    save,
)


def webp_head(kind: bytes, body: bytes) -> bytes:
    body = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


BOMBS = {
    "png": png(60000, 60000, 8, 2, b""),
    "png between warning and error": png(10000, 10000, 8, 0, b""),
    "jpeg": FILES["jpeg"].replace(b"\xff\xc0\0\x11\x08\0\x20\0\x20", b"\xff\xc0\0\x11\x08\xea\x60\xea\x60"),
    "webp vp8x": webp_head(b"VP8X", b"\0\0\0\0" + b"\xff\xff\xff" * 2),
    "webp vp8l": webp_head(b"VP8L", b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(20)),
    "webp vp8": webp_head(b"VP8 ", b"\x30\1\0\x9d\1\x2a" + b"\xff\x3f\xff\x3f" + bytes(20)),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=list(BOMBS))
def test_bombs_stop_at_the_header(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("Pillow must not see a bomb")

    monkeypatch.setattr(Image, "open", never)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert "smaller" in refused(data, TooLarge)
    assert not seen


def test_a_real_image_above_a_small_limit() -> None:
    limits = ImageLimits(max_pixels=32 * 32 - 1)
    for data in FILES.values():
        refused(data, TooLarge, limits)
        assert decode(data, limits=ImageLimits(max_pixels=32 * 32)).original_size == (32, 32)


def test_a_second_png_header_cannot_change_the_size() -> None:
    data = png(
        32, 32, 8, 2, RGB.tobytes(), chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    )
    refused(data, InvalidImage)
    moved = png(32, 32, 8, 2, RGB.tobytes()).replace(PNG_MAGIC, PNG_MAGIC + chunk(b"tEXt", b"\0" * 20), 1)
    refused(moved, InvalidImage)


def test_a_second_jpeg_frame_cannot_change_the_size() -> None:
    at = FILES["jpeg"].index(b"\xff\xc0")
    frame = FILES["jpeg"][at : at + 19]
    refused(FILES["jpeg"][:at] + frame + FILES["jpeg"][at:], InvalidImage)


def test_metadata_bombs_are_never_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zlib.compress(bytes(30_000_000), 9)
    chunks = (
        chunk(b"iCCP", b"p\0\0" + packed),
        chunk(b"zTXt", b"k\0\0" + packed),
        chunk(b"iTXt", b"k\0\1\0\0\0" + packed),
    )
    data = png(32, 32, 8, 2, RGB.tobytes(), *chunks)
    with pytest.raises(ValueError, match="too large"):  # Pillow alone does fall for it
        Image.open(io.BytesIO(data))
    assert torch.equal(decode(data).pixels, expected(RGB))


def test_jpeg_metadata_that_pillow_warns_about_is_not_read() -> None:
    data = save(RGB, "JPEG")
    for marker, body in (
        (b"\xff\xe2", b"MPF\0II*\0\x08\0\0\0\x01\0"),
        (b"\xff\xe1", b"Exif\0\0II*\0\x08\0\0\0\xff\0"),
    ):
        segment = marker + struct.pack(">H", len(body) + 2) + body
        spiked = data[:2] + segment + data[2:]
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            Image.open(io.BytesIO(spiked)).getexif()
        assert seen  # Pillow alone does warn
        assert torch.equal(decode(spiked).pixels, decode(data).pixels)


def test_jpeg_with_endless_scans() -> None:
    data = FILES["jpeg progressive"]
    at = data.rindex(b"\xff\xda")
    assert "scans" in refused(data[:at] + data[at:-2] * 60 + data[-2:], InvalidImage)


def test_many_tiny_pixel_chunks() -> None:
    whole = png(32, 32, 8, 2, RGB.tobytes())
    at = whole.index(b"IDAT") - 4
    length = struct.unpack_from(">I", whole, at)[0]
    pieces = [chunk(b"IDAT", whole[at + 8 + i : at + 9 + i]) for i in range(length)]
    assert torch.equal(decode(whole[:at] + b"".join(pieces) + chunk(b"IEND", b"")).pixels, expected(RGB))


@pytest.mark.parametrize(
    "data", [b"\xff" * 20_000_000, b"\xff\xe1\x00\x02" * 4_000_000], ids=["filler", "segments"]
)
def test_a_jpeg_of_headers_alone_is_refused_by_those(data: bytes) -> None:
    assert pixels_of(b"\xff\xd8" + data) == 0
    limits = ImageLimits(max_bytes=30_000_000)
    with pytest.raises(InvalidImage):
        decode(b"\xff\xd8" + data, limits=limits)


def test_a_png_of_chunks_alone_is_refused() -> None:
    whole = FILES["png"]
    empty = chunk(b"teXt", b"")
    with pytest.raises(InvalidImage):
        decode(whole[:33] + empty * 100_000 + whole[33:])


def test_very_long_image() -> None:
    image = decode(save(np.full((1, 65_535), 128, np.uint8)))
    assert image.original_size == (65_535, 1)
    assert torch.allclose(image.pixels, torch.tensor(128 / 255), atol=1e-6)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    refused(png(*size, 8, 0, b""), InvalidImage)
    refused(npy(np.zeros(size, np.uint8)), InvalidImage)
    at = FILES["jpeg"].index(b"\xff\xc0") + 5
    refused(FILES["jpeg"][:at] + struct.pack(">HH", *size) + FILES["jpeg"][at + 4 :], InvalidImage)


@pytest.mark.parametrize("data", FILES.values(), ids=list(FILES))
def test_every_truncation_is_refused(data: bytes) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    for end in [*range(16, len(data), max(1, len(data) // 60)), len(data) - 2, len(data) - 1]:
        message = refused(data[:end], InvalidImage)
        assert "truncated or damaged" in message or "header is damaged" in message


@pytest.mark.parametrize("name", ["png", "png grey", "png palette"])
def test_any_flipped_bit_of_a_png_is_noticed(name: str) -> None:
    for at in range(8, len(FILES[name]) - 12, 7):
        broken = bytearray(FILES[name])
        broken[at] ^= 0x10
        with pytest.raises((InvalidImage, TooLarge)):
            decode(bytes(broken))


def test_no_words_of_pillow_or_of_the_file() -> None:
    data = (
        FILES["png"][:8]
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 3, 9, 0, 0, 0))
        + chunk(b"IEND", b"")
    )
    message = refused(data, InvalidImage)
    assert message == "The PNG file is truncated or damaged: check it and send it again."


MAGICS = [
    PNG_MAGIC,
    PNG_MAGIC + b"\0\0\0\x0dIHDR\0\0\0\x20\0\0\0\x20\x08\x02\0\0\0",
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xc0\0\x11\x08\0\x20\0\x20\x03",
    b"RIFF\0\1\0\0WEBPVP8 ",
    b"RIFF\0\1\0\0WEBPVP8L",
    b"RIFF\0\1\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\x1f\0\0\x1f\0\0",
    b"\x93NUMPY\1\0",
    b"\x93NUMPY\1\0\x76\0{'descr': '<f4', 'fortran_order': False, 'shape': (",
    b"",
]


def survive(data: bytes) -> None:
    """An image that keeps every promise, or a RequestError."""
    try:
        image = decode(data, limits=ImageLimits(max_pixels=100_000))
    except RequestError as error:
        message = str(error)
    else:
        message = ""
        assert image.pixels.shape == (3, 32, 32)
        assert bool(((image.pixels >= 0) & (image.pixels <= 1)).all())
    assert message.isascii()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MAGICS), st.binary(max_size=300))
def test_random_bytes_after_a_magic(magic: bytes, rest: bytes) -> None:
    survive(magic + rest)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
    st.booleans(),
)
def test_random_damage(name: str, edits: list[tuple[float, int]], keep: float, head: bool) -> None:
    data = bytearray(FILES[name])
    for where, value in edits:
        data[int(where * (min(len(data), 200) if head else len(data)))] = value
    survive(bytes(data[: int(keep * len(data))]) if keep < 0.5 else bytes(data))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"IDAT", b"sRGB", b"ab\xff\0"]),
    st.binary(max_size=40),
)
def test_random_chunks_with_a_right_checksum(name: bytes, body: bytes) -> None:
    for colour, stride in ((0, 32), (2, 96), (3, 32), (4, 64), (6, 128)):
        survive(png(32, 32, 8, colour, bytes(32 * stride), chunk(name, body)))


@settings(max_examples=150, deadline=None)
@given(st.text("{}()[]'\":,<>|=fu48OVshapedcrtn_oTFale-L\\ 0123\n#*jx", max_size=80), st.booleans())
def test_random_npy_headers(text: str, whole: bool) -> None:
    header = text if whole else f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({text}), }}"
    survive(npy_raw(header, bytes(16)))
