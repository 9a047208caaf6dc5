"""Patches of photographs at many scales, whole pictures held out; the noise levels of a batch.

A picture is kept as a pyramid of sizes, so that a patch of any scale is a slice: nothing is resized
while a network learns.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metastable.errors import DataError
from metastable.walk import walk

LARGEST = 768
"""Shorter side that larger pictures are reduced to."""
RATIO = 0.75
"""Of one size of a pyramid to the one above it."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A colour picture: its name in the folder, and pixels [H, W, 3]."""

    name: str
    pixels: Pixels

    def resized(self, shorter: int) -> Picture:
        """With this shorter side, the aspect kept; the same picture if that would enlarge it."""
        height, width = self.pixels.shape[:2]
        scale = shorter / min(height, width)
        if scale >= 1:
            return self
        size = max(1, round(scale * width)), max(1, round(scale * height))
        made = Image.fromarray(self.pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return Picture(self.name, np.asarray(made))

    def centre(self, size: int) -> Picture:
        """Its middle, at most `size` pixels a side."""
        height, width = self.pixels.shape[:2]
        top, left = max(0, height - size) // 2, max(0, width - size) // 2
        return Picture(self.name, self.pixels[top : top + size, left : left + size])

    def jpeg(self, quality: int) -> Picture:
        return Picture(self.name, jpeg(self.pixels, quality))


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """The same pixels [H, W, 3] after JPEG compression."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def read(folder: Path, least: int) -> list[Picture]:
    """The pictures in a folder and below it, by name, at most LARGEST on the shorter side.

    Files that are damaged, or smaller than `least` on a side, are left out with a warning that names them.
    Raises DataError if no picture is left.
    """
    found = []
    for name in walk(folder)[0]:
        try:
            with Image.open(folder / name) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            warnings.warn(f"{name} is left out: {error}", stacklevel=2)
            continue
        if min(pixels.shape[:2]) < least:
            warnings.warn(f"{name} is left out: a side has fewer than {least} pixels", stacklevel=2)
            continue
        found.append(Picture(name, pixels).resized(LARGEST))
    if not found:
        raise DataError(f"{folder} has no pictures of {least} pixels a side")
    return found


def split(pictures: Sequence[Picture], share: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """Whole pictures to learn from, and about the share of them to hold out.

    A picture's side depends on seed and name alone, so that more pictures move none to the other side.
    Raises DataError if one side is empty.
    """

    def held_out(picture: Picture) -> bool:
        digest = hashlib.sha256(f"{seed}:{picture.name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    train = [picture for picture in pictures if not held_out(picture)]
    held = [picture for picture in pictures if held_out(picture)]
    if not train or not held:
        raise DataError(f"{len(pictures)} pictures leave none to train on or none to hold out: give more")
    return train, held


def digest(pictures: Sequence[Picture]) -> str:
    """SHA-256 over names and pixels."""
    h = hashlib.sha256()
    for picture in pictures:
        h.update(f"{picture.name} {picture.pixels.shape}".encode())
        h.update(picture.pixels.tobytes())
    return h.hexdigest()


def tensor(pixels: Pixels) -> Tensor:
    """[H, W, 3] or [B, H, W, 3] in 0..255 to float32 channels first in [0, 1]."""
    return torch.from_numpy(pixels.copy()).movedim(-1, -3).float() / 255


@dataclass(frozen=True)
class Augmentation:
    """How a batch is made; shares are probabilities in [0, 1].

    Attributes:
        patch: height and width of patches.
        batch: patches.
        gray: share without colour, whose noise is the same in all channels.
        jpeg: share that was compressed as JPEG, quality 50 to 95, before the noise.
        clip: share of noisy patches cut to [0, 1], as those are that a server purifies.
        sigma_max: noise levels are uniform from 0 to this.
    """

    patch: int
    batch: int
    gray: float
    jpeg: float
    clip: float
    sigma_max: float


class Patches:
    """Batches of clean and noisy patches of these pictures."""

    def __init__(self, pictures: Sequence[Picture], how: Augmentation) -> None:
        self._pyramids = [_pyramid(picture, how.patch) for picture in pictures]
        self._how = how

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Clean and noisy patches [B, 3, P, P] of an update, a function of seed and step alone."""
        how, rng = self._how, np.random.default_rng((seed, step))
        clean = tensor(np.stack([self._patch(rng) for _ in range(how.batch)]))
        gray, clip = (self._chosen(rng, share) for share in (how.gray, how.clip))
        sigma = torch.from_numpy(rng.uniform(0, how.sigma_max, (how.batch, 1, 1, 1))).float()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(clean.shape, generator=generator)
        clean = torch.where(gray, clean.mean(1, keepdim=True), clean)
        noisy = clean + sigma * torch.where(gray, noise[:, :1], noise)
        noisy = torch.where(clip, noisy.clamp(0, 1), noisy)
        layout = torch.channels_last
        return clean.contiguous(memory_format=layout), noisy.contiguous(memory_format=layout)

    def _chosen(self, rng: np.random.Generator, share: float) -> Tensor:
        return torch.from_numpy(rng.random((self._how.batch, 1, 1, 1)) < share)

    def _patch(self, rng: np.random.Generator) -> Pixels:
        """A patch of a picture and a scale at random, turned and mirrored."""
        pyramid = self._pyramids[rng.integers(len(self._pyramids))]
        level, side = pyramid[rng.integers(len(pyramid))], self._how.patch
        top, left = (int(rng.integers(n - side + 1)) for n in level.shape[:2])
        pixels = np.rot90(level[top : top + side, left : left + side], int(rng.integers(4)))
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        pixels = np.ascontiguousarray(pixels)
        compressed, quality = rng.random() < self._how.jpeg, int(rng.integers(50, 96))
        return jpeg(pixels, quality) if compressed else pixels


def _pyramid(picture: Picture, least: int) -> list[Pixels]:
    """The picture and its reductions, none with a side below `least`."""
    sizes, shorter = [], float(min(picture.pixels.shape[:2]))
    while shorter >= least:
        sizes.append(picture.resized(round(shorter)).pixels)
        shorter *= RATIO
    return sizes
