"""metastable.images: what is read, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from metastable.errors import InvalidImage, MalformedRequest, RequestError, TooLarge, UnsupportedImage
from metastable.images import PIXEL_CEILING, DecodedImage, ImageLimits, decode

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


def test_very_long_image() -> None:
    image = decode(save(np.full((1, 1_000_000), 128, np.uint8)))
    assert image.original_size == (1_000_000, 1)
    assert torch.allclose(image.pixels, torch.tensor(128 / 255), atol=1e-6)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    refused(png(*size, 8, 0, b""), InvalidImage)
    refused(npy(np.zeros(size, np.uint8)), InvalidImage)
    at = FILES["jpeg"].index(b"\xff\xc0") + 5
    refused(FILES["jpeg"][:at] + struct.pack(">HH", *size) + FILES["jpeg"][at + 4 :], InvalidImage)


# ---- damage


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    """The same as Pillow's own exif_transpose, which may warn and so is not used."""
    picture = Image.fromarray(RGB[:20])
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = save(picture, kind, exif=exif(orientation), **options)
    image = decode(data, size=20)
    methods = [None, 0, 3, 1, 5, 4, 6, 2]  # Image.Transpose by orientation - 1
    method = methods[orientation - 1]
    upright = Image.open(io.BytesIO(data)).convert("RGB")
    upright = upright if method is None else upright.transpose(Image.Transpose(method))
    assert image.original_size == upright.size == ((20, 32) if orientation > 4 else (32, 20))
    assert torch.equal(image.pixels, decode(save(upright), size=20).pixels)
    assert image.notes == (() if orientation == 1 else ("rotated by EXIF",))


def test_exif_on_transparent_image_turns_the_alpha() -> None:
    rgba = np.dstack([RGB, GREY])
    image = decode(save(rgba, exif=exif(6)))
    assert torch.equal(image.pixels, decode(save(np.ascontiguousarray(np.rot90(rgba, -1)))).pixels)
    assert set(image.notes) == {"rotated by EXIF", "alpha composited on white"}


@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"junk" * 9, exif(6)[:20], exif(9)]
)
def test_damaged_exif_is_ignored(block: bytes) -> None:
    data = png(32, 32, 8, 2, RGB.tobytes(), chunk(b"eXIf", block))
    assert torch.equal(decode(data).pixels, expected(RGB))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB), Image.fromarray(RGB // 2)]
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    image = decode(save(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options))
    assert torch.equal(image.pixels, expected(RGB))
    assert image.notes == ("first frame of an animation",)


def test_resize() -> None:
    board = np.kron(np.indices((64, 48)).sum(0) % 2, np.ones((4, 4))).astype(np.uint8) * 255
    image = decode(save(board))
    assert image.resized
    assert image.original_size == (192, 256)
    middle = image.pixels[:, 4:-4, 4:-4]
    assert float((middle - 0.5).abs().max()) < 0.25  # antialiased: nearest neighbour would give 0 or 1
    flat = decode(save(np.full((7, 99, 3), 200, np.uint8)))
    assert torch.allclose(flat.pixels, torch.tensor(200 / 255), atol=1e-6)


def test_resize_stays_in_range_and_has_no_rounding_to_bytes() -> None:
    edges = np.kron(RNG.integers(0, 2, (10, 10)), np.ones((10, 10))).astype(np.uint8) * 255
    pixels = decode(save(edges)).pixels
    assert pixels.min() == 0
    assert pixels.max() == 1
    levels = pixels[0].flatten() * 255
    assert bool((levels - levels.round()).abs().max() > 0.1)
    assert decode(save(RGB), size=8, channels=1).pixels.shape == (1, 8, 8)
    assert decode(save(RGB), size=64).pixels.shape == (3, 64, 64)


# ---- .npy


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_floats_survive_bit_for_bit(version: tuple[int, int], dtype: str, fortran: bool) -> None:
    array = RNG.random((3, 32, 32), np.float32)
    array.flat[:4] = [0.0, -0.0, 1.0, 1e-42]
    laid_out = np.asarray(array.astype(dtype), order="F" if fortran else "C")
    image = decode(npy(laid_out, version))
    assert image.pixels.numpy().tobytes() == array.tobytes()
    assert image.notes == ()


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((32, 32), None),
        ((32, 32, 1), None),
        ((1, 32, 32), None),
        ((32, 32, 3), (2, 0, 1)),
        ((3, 32, 32), (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_npy_layouts_and_types(shape: tuple[int, ...], axes: tuple[int, ...] | None, dtype: type) -> None:
    array = (
        RNG.random(shape).astype(dtype) if dtype != np.uint8 else RNG.integers(0, 256, shape, dtype=np.uint8)
    )
    scaled = array.astype(np.float32) / np.float32(255 if dtype == np.uint8 else 1)
    want = np.broadcast_to(scaled.reshape(1, 32, 32), (3, 32, 32)) if axes is None else scaled.transpose(axes)
    image = decode(npy(array))
    assert np.array_equal(image.pixels.numpy(), want)
    assert image.format == "NPY"
    assert image.notes == (("float64 rounded to float32",) if dtype == np.float64 else ())


def test_npy_ambiguous_shape_is_hwc_and_resized() -> None:
    array = RNG.random((3, 40, 3), np.float32)
    image = decode(npy(array))
    assert image.original_size == (40, 3)
    assert image.resized
    assert decode(npy(RNG.random((3, 40, 50), np.float32))).original_size == (50, 40)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3, 1.001, 255.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_values_out_of_range(value: float, dtype: type) -> None:
    array = np.full((32, 32), 0.5, dtype)
    array[3, 4] = value
    message = refused(npy(array), InvalidImage)
    assert "[0, 1]" in message
    assert ("values from" in message) == bool(np.isfinite(value))


def test_npy_signalling_nan() -> None:
    refused(npy(np.full((32, 32), 0x7FA00000, np.uint32).view(np.float32)), InvalidImage)


@pytest.mark.parametrize("dtype", ["i1", "<i4", "<u2", "?", "<c8", "<U3", "S5", "<M8[s]", "f8,i4", "O"])
def test_npy_types_that_are_no_pixels(dtype: str) -> None:
    refused(npy(np.zeros((32, 32), dtype)), InvalidImage)


def test_npy_never_unpickles() -> None:
    body = pickle.dumps([1] * 1024)
    refused(npy_raw("{'descr': '|O', 'fortran_order': False, 'shape': (32, 32), }", body), InvalidImage)


@pytest.mark.parametrize(
    "shape",
    [
        "()",
        "(1024,)",
        "(-32, -32)",
        "(0, 32)",
        "(32, 32, 4)",
        "(1, 32, 32, 1)",
        "(10**9, 2)",
        "(32.0, 32)",
        "(999999999999, 999999999999)",
        "(32L, 32L)",
        "(032, 32)",
        "(" + "9" * 5000 + ", 1)",
        "(" * 3000,
        "(32, 33)",
    ],
)
def test_npy_impossible_shapes(shape: str) -> None:
    refused(
        npy_raw(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", bytes(1024)), InvalidImage
    )


@pytest.mark.parametrize("shape", ["(32L, 32L)", "(32, 32), '\\d': 1", "(32 if 1else 0, 32)"])
def test_npy_headers_that_numpy_warns_about_are_not_read(shape: str) -> None:
    data = npy_raw(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", bytes(1024))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with contextlib.suppress(ValueError):
            np.lib.format.read_array(io.BytesIO(data))
        assert seen  # numpy alone does warn
        seen.clear()
        refused(data, InvalidImage)
    assert not seen


def test_npy_length_must_be_exact() -> None:
    data = npy(GREY)
    for wrong in (data[:-1], data + b"\0", data[:-1024]):
        assert "truncated or damaged" in refused(wrong, InvalidImage)


def test_npy_headers() -> None:
    good = '{"shape": (32, 32), "fortran_order": False, "descr": "|u1"}' + " " * 9000 + "\n"
    assert torch.equal(decode(npy_raw(good, GREY.tobytes(), (2, 0))).pixels, expected(GREY))
    refused(npy_raw(good + " " * 1000, GREY.tobytes(), (2, 0)), InvalidImage)
    refused(npy_raw("{'shape': (32, 32), 'shape': (32, 32), 'descr': '|u1'}", GREY.tobytes()), InvalidImage)
    refused(
        npy_raw("{'descr': '|u1', 'fortran_order': 'u1', 'shape': (32, 32)}", GREY.tobytes()), InvalidImage
    )
    assert "3.0" in refused(npy(GREY, (3, 0)), InvalidImage)


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
