"""Sizes that are no squares, and parts of images."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from metastable.images import Box, decode

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 20, 4), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_height_comes_before_width() -> None:
    found = decode(png(PIXELS[..., :3]), size=(12, 20))
    assert not found.resized
    assert torch.equal(
        (255 * found.pixels).round().byte().permute(1, 2, 0), torch.from_numpy(PIXELS[..., :3])
    )
    assert decode(png(PIXELS[..., :3]), size=(5, 9), channels=1).pixels.shape == (1, 5, 9)
    assert torch.equal(decode(png(PIXELS), size=7).pixels, decode(png(PIXELS), size=(7, 7)).pixels)


@pytest.mark.parametrize("channels", [3, 4])  # without and with transparency
def test_a_window_is_what_a_file_of_that_part_gives(channels: int) -> None:
    asked = []

    def window(height: int, width: int) -> Box:
        asked.append((height, width))
        return 2, 5, 8, 10

    pixels = PIXELS[..., :channels]
    part = decode(png(np.ascontiguousarray(pixels[2:10, 5:15])), size=(8, 10))
    found = decode(png(pixels), size=(8, 10), window=window)
    assert asked == [(12, 20)]
    assert torch.equal(found.pixels, part.pixels)
    assert (found.resized, found.original_size) == (False, (20, 12))
    assert decode(png(pixels), size=(4, 5), window=window).resized


def test_sizes_that_cannot_be_are_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="size positive"):
        decode(png(PIXELS), size=(3, 0))
