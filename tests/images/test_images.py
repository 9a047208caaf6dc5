"""metastable.images: what is read, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import io
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from metastable.errors import InvalidImage, MalformedRequest, TooLarge, UnsupportedImage
from metastable.images import PIXEL_CEILING, DecodedImage, ImageLimits, decode
from tests.image_files import (
    FILES,
    GREY,
    PNG_MAGIC,
    RGB,
    RNG,
    chunk,
    expected,
    png,
    refused,
    save,
)

# ---- what is refused before any parsing


def test_empty() -> None:
    refused(b"", MalformedRequest)


def test_too_many_bytes() -> None:
    data = FILES["png"]
    assert str(len(data)) in refused(data, TooLarge, ImageLimits(max_bytes=len(data) - 1))
    assert decode(data, limits=ImageLimits(max_bytes=len(data))).format == "PNG"


@pytest.mark.parametrize(
    "data",
    [
        save(RGB, "GIF"),
        save(RGB, "BMP"),
        save(RGB, "TIFF"),
        save(RGB, "PPM"),
        b"<svg></svg>",
        b"PK\x03\x04" + bytes(100),
        pickle.dumps(RGB),
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0",
        PNG_MAGIC[:7],
    ],
)
def test_other_formats(data: bytes) -> None:
    refused(data, UnsupportedImage)


@pytest.mark.parametrize(("name", "data"), FILES.items())
def test_format_is_sniffed(name: str, data: bytes) -> None:
    image = decode(data)
    assert image.format == name.split()[0].upper()
    assert image.pixels.shape == (3, 32, 32)
    assert image.pixels.dtype == torch.float32
    assert image.pixels.is_contiguous()
    assert not image.resized
    assert image.original_size == (32, 32)


def test_pillow_gets_the_sniffed_format_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = Image.open

    def spy(stream: io.BytesIO, **options: object) -> ImageFile.ImageFile:
        asked.append(options["formats"])
        return real(stream, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", spy)
    for name in ("png", "jpeg", "webp"):
        decode(FILES[name])
    assert asked == [["PNG"], ["JPEG"], ["WEBP"]]


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (32, 2), (32, 4)])
def test_wrong_arguments_are_the_callers_fault(size: int, channels: int) -> None:
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        decode(FILES["png"], size=size, channels=channels)


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": 0}, {"max_pixels": PIXEL_CEILING + 1}])
def test_limits_that_pillow_would_warn_above(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_pixels"):
        ImageLimits(**limits)


def test_the_ceiling_is_pillows() -> None:
    assert Image.MAX_IMAGE_PIXELS == PIXEL_CEILING


# ---- bombs


# ---- damage


# ---- pixels


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_right_size_is_exact(kind: str, options: dict[str, object]) -> None:
    image = decode(save(RGB, kind, **options))
    assert torch.equal(image.pixels, expected(RGB))
    assert image.notes == ()
    assert torch.equal(decode(save(RGB, "PNG", icc_profile=b"not a profile")).pixels, expected(RGB))


def test_jpeg_is_what_pillow_reads() -> None:
    data = save(RGB, "JPEG", quality=90)
    assert torch.equal(decode(data).pixels, expected(np.asarray(Image.open(io.BytesIO(data)))))


def test_grey_and_luma() -> None:
    assert torch.equal(decode(save(GREY)).pixels, expected(GREY))
    assert torch.equal(decode(save(GREY), channels=1).pixels, expected(GREY)[:1])
    luma = decode(save(RGB), channels=1)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert luma.pixels.shape == (1, 32, 32)
    assert torch.allclose(luma.pixels[0], (expected(RGB) * weights).sum(0), atol=1e-6)
    assert luma.notes == ("colour reduced to luma",)
    assert torch.equal(decode(save(np.dstack([GREY] * 3)), channels=1).pixels, expected(GREY)[:1])


def test_one_bit() -> None:
    bits = GREY > 127
    assert torch.equal(decode(save(Image.fromarray(bits))).pixels, expected(bits.astype(np.uint8) * 255))


def test_palette() -> None:
    picture = Image.fromarray(RGB).quantize(16)
    assert torch.equal(decode(save(picture)).pixels, expected(np.asarray(picture.convert("RGB"))))
    refused(png(32, 32, 8, 3, bytes(32 * 32)), InvalidImage)  # no palette


def on_white(colour: np.ndarray, alpha: np.ndarray) -> torch.Tensor:
    a = torch.from_numpy(alpha.copy()).double() / 255
    return (expected(colour).double() * a + 1 - a).float()


def test_alpha_is_composited_on_white() -> None:
    alpha = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
    for data, colour in (
        (save(np.dstack([RGB, alpha])), RGB),
        (save(Image.fromarray(np.dstack([GREY, alpha]), "LA")), GREY),
        (save(np.dstack([RGB, alpha]), "WEBP", lossless=True, exact=True), RGB),
    ):
        image = decode(data)
        assert image.notes == ("alpha composited on white",)
        assert torch.allclose(image.pixels, on_white(colour, alpha), atol=1e-6)
        assert image.pixels.max() <= 1
    opaque = decode(save(np.dstack([RGB, np.full_like(alpha, 255)])))
    assert opaque.notes == ()
    assert torch.equal(opaque.pixels, expected(RGB))


def test_transparent_palette() -> None:
    picture = Image.fromarray(RGB).quantize(16)
    for transparency in (3, bytes(range(0, 160, 10))):
        data = save(picture, transparency=transparency)
        image = decode(data)
        rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
        assert image.notes == ("alpha composited on white",)
        assert torch.allclose(image.pixels, on_white(rgba[..., :3], rgba[..., 3]), atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_grey(depth: int) -> None:
    """The key is in the file's own depth: 2 of 3 levels is the sample 170."""
    top = (1 << depth) - 1
    values, key = RNG.integers(0, top + 1, (32, 32)), top * 2 // 3 if depth > 1 else 1
    values[0, 0], values[0, 1] = key, 0
    bits = ((values[..., None] >> np.arange(depth)[::-1]) & 1).reshape(32, -1).astype(np.uint8)
    image = decode(
        png(32, 32, depth, 0, np.packbits(bits, axis=1).tobytes(), chunk(b"tRNS", struct.pack(">H", key)))
    )
    want = np.where(values == key, 1.0, values / top).astype(np.float32)
    assert image.notes == ("alpha composited on white",)
    assert torch.allclose(image.pixels[0], torch.from_numpy(want), atol=1e-7)


def test_transparent_colour() -> None:
    data = png(32, 32, 8, 2, RGB.tobytes(), chunk(b"tRNS", struct.pack(">3H", *RGB[5, 7].tolist())))
    want = RGB.copy()
    want[np.all(RGB[5, 7] == RGB, axis=-1)] = 255
    assert torch.equal(decode(data).pixels, expected(want))
    refused(png(32, 32, 8, 2, RGB.tobytes(), chunk(b"tRNS", b"\0")), InvalidImage)


def test_cmyk_jpeg() -> None:
    image = decode(FILES["jpeg cmyk"])
    want = expected(np.asarray(Image.open(io.BytesIO(FILES["jpeg cmyk"])).convert("RGB")))
    assert torch.equal(image.pixels, want)
    assert image.notes == ("CMYK converted to RGB",)


def test_sixteen_bit_grey_keeps_its_precision() -> None:
    deep = RNG.integers(0, 65536, (32, 32)).astype(np.uint16)
    image = decode(save(deep), channels=1)
    assert torch.equal(image.pixels[0], torch.from_numpy(deep.astype(np.float32)) / 65535.0)
    assert image.notes == ()


@pytest.mark.parametrize(("colour", "samples"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_keeps_the_high_byte(colour: int, samples: int) -> None:
    deep = RNG.integers(0, 65536, (32, 32, samples)).astype(">u2")
    if samples != 3:
        deep[..., -1] = 65535
    image = decode(png(32, 32, 16, colour, deep.tobytes()))
    high = (deep >> 8).astype(np.uint8)
    assert torch.equal(image.pixels, expected(high[..., 0] if colour == 4 else high[..., :3]))
    assert image.notes == ("16-bit colour reduced to 8 bits",)


# ---- .npy


# ---- purity


def test_many_threads_agree() -> None:
    data = [FILES[name] for name in sorted(FILES)] * 6
    alone = [decode(one) for one in data]
    with ThreadPoolExecutor(8) as pool:
        together: list[DecodedImage] = list(pool.map(decode, data))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert a.notes == b.notes


def test_the_pixels_are_the_callers_own() -> None:
    data = FILES["npy float"]
    image = decode(data)
    image.pixels.zero_()
    assert float(decode(data).pixels.max()) > 0.5
