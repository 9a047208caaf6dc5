"""Squeezing the input: JPEG, fewer bits, a median filter.  Baselines that a purifier has to beat.

Xu, Evans and Qi (2018, "Feature squeezing") and Dziugaite et al. (2016, JPEG).  Nothing here is random, so
one chain says all, and an attacker who knows of it takes the gradient of something smooth in its place
(metastable.attacks.squeezed): they are here to be compared with, not to be relied on.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metastable.dynamics import ScoreFunction
from metastable.dynamics.base import PUBLISHED, Adaptation, Dynamics, Kind, Normal, Row, no_noise, whole
from metastable.errors import NoGradient


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Images [B, 1 or 3, H, W] in [0, 1] after they were written as JPEG files of this quality, 1 to 95.

    By Pillow with its defaults, which store colour at half the resolution.
    """
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    read = []
    for picture in pixels:
        stream = io.BytesIO()
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(
            stream, "JPEG", quality=quality
        )
        read.append(np.asarray(Image.open(stream)).reshape(picture.shape))
    out: Tensor = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2) / 255
    return out.to(x).contiguous()


def fewer_bits(x: Tensor, bits: int) -> Tensor:
    """Images in [0, 1] rounded to 2^bits values."""
    most = (1 << bits) - 1
    return (x * most).round() / most


def median(x: Tensor, size: int) -> Tensor:
    """The median of the size x size pixels around each, channel by channel; borders are reflected."""
    before, after = (size - 1) // 2, size // 2
    rows, columns = (_reflected(side, before, after).to(x.device) for side in x.shape[2:])
    windows = x[:, :, rows][:, :, :, columns].unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    middle: Tensor = windows.quantile(0.5, dim=-1)
    return middle


def _reflected(side: int, before: int, after: int) -> Tensor:
    """Places in an axis of `side` pixels and beyond it, reflected, again where it is short.

    (PyTorch's own padding refuses images smaller than the window.)
    """
    period = max(2 * (side - 1), 1)
    places = torch.arange(-before, side + after) % period
    return torch.minimum(places, period - places)


WAYS: dict[str, tuple[Callable[[Tensor, int], Tensor], int, int]] = {
    "jpeg": (jpeg, 1, 95),
    "bits": (fewer_bits, 1, 8),
    "median": (median, 2, 7),
}
"""What squeezes, and its least and greatest level."""


@dataclass(frozen=True, kw_only=True)
class Squeezed(Kind):
    """Chains of one step without noise, whose parameter is the level."""

    way: str
    network: str = ""
    name: ClassVar[str] = "squeeze"
    probe: ClassVar[Row] = (5.0,)
    draws: ClassVar[int] = 0
    captures: ClassVar[bool] = False

    def step(
        self,
        x: Tensor,
        score: ScoreFunction,
        columns: Sequence[Tensor],
        normal: Normal = no_noise,
        adapt: Adaptation = PUBLISHED,
    ) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and x.requires_grad:
            raise NoGradient(f"{self.way} has no gradient with respect to its image: use BPDA")
        squeeze, levels, out = WAYS[self.way][0], columns[0], torch.empty_like(x)
        for level in sorted(set(levels.tolist())):
            rows = levels == level
            out[rows] = squeeze(x[rows], round(level))
        return out, torch.ones_like(levels)


@dataclass(frozen=True, kw_only=True)
class Squeeze(Dynamics):
    """One step that squeezes the image.

    Attributes:
        way: `jpeg`, `bits` or `median`.
        level: quality of the JPEG file, 1 to 95; bits a value, 1 to 8; side of the window, 2 to 7 pixels.
        steps: 1.
    """

    way: str
    level: int
    steps: int = 1
    name: ClassVar[str] = "squeeze"
    random: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("steps", self.steps == 1, "1, for an image is squeezed once")
        self.require("way", self.way in tuple(WAYS), f"one of {tuple(WAYS)}")
        _, least, most = WAYS[self.way]
        good = whole(self.level) and least <= self.level <= most
        self.require("level", good, f"a whole number from {least} to {most} for {self.way}")

    @property
    def kind(self) -> Kind:
        return Squeezed(way=self.way)

    def row(self, flagged: bool) -> Row:
        return (float(self.level),)
