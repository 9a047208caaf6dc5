"""metastable.images: orientation, first frames and sizes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from metastable.images import decode
from tests.image_files import (
    GREY,
    RGB,
    RNG,
    chunk,
    exif,
    expected,
    png,
    save,
)


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
