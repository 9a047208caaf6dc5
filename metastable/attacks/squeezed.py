"""A gradient for squeezed images: the value is the real one, the derivative that of something smooth.

- JPEG: its steps in floats (colours, half resolution for two of them, cosines, the file's own tables) with a
  rounding whose derivative is not zero (Shin and Song 2017, "JPEG-resistant adversarial images").
- A median: that of the pixel that is taken.
- Fewer bits: the identity, as BPDA has it (Athalye et al. 2018).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache, partial

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from metastable.dynamics.base import Dynamics
from metastable.dynamics.squeeze import Squeeze, median

SIDE = 8
"""Of a block, in pixels."""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""ITU-T T.871, of values in [0, 255]; 128 is added to the last two."""


def surrogate(dynamics: Dynamics) -> Callable[[Tensor], Tensor] | None:
    """What takes the place of the dynamics in the backward pass: images [B, C, H, W] in [0, 1] to such.

    None where the dynamics has a derivative of its own, or none that says more than the identity.
    """
    if not isinstance(dynamics, Squeeze) or dynamics.way == "bits":
        return None
    if dynamics.way == "median":
        return partial(median, size=dynamics.level)
    return partial(soft_jpeg, quality=dynamics.level)


def soft_round(x: Tensor) -> Tensor:
    """The nearest whole number and the cube of the distance from it (Shin and Song 2017, eq. 2)."""
    near = x.detach().round()
    return near + (x - near) ** 3


def soft_jpeg(x: Tensor, quality: int, rounded: Callable[[Tensor], Tensor] = soft_round) -> Tensor:
    """Images [B, 1 or 3, H, W] in [0, 1] nearly as a JPEG file of this quality, 1 to 95, has them.

    Pillow's files: colour at half the resolution, interpolated between its pixels when they are read.
    """
    height, width = x.shape[2:]
    step = SIDE * (2 if x.shape[1] == 3 else 1)
    levels = F.pad(255 * x, (0, -width % step, 0, -height % step), mode="replicate")
    light, colour = (table.to(x) for table in _tables(quality))
    if x.shape[1] == 1:
        found = _blockwise(levels, light, rounded)
    else:
        to = torch.tensor(_TO_YCC).to(x)
        y, *others = torch.einsum("ij,bjhw->ibhw", to, levels).unsqueeze(2)
        coarse = [_blockwise(F.avg_pool2d(one, 2) + 128, colour, rounded) - 128 for one in others]
        fine = [F.interpolate(one, scale_factor=2, mode="bilinear") for one in coarse]
        ycc = torch.cat([_blockwise(y, light, rounded), *fine], dim=1)
        found = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to), ycc)
    return (found[:, :, :height, :width] / 255).clamp(0, 1)


@cache
def _tables(quality: int) -> tuple[Tensor, Tensor]:
    """Of brightness and of colour, as Pillow writes them: [8, 8] each."""
    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(stream, "JPEG", quality=quality)
    found = Image.open(stream).quantization  # type: ignore[attr-defined]
    light, colour = (torch.tensor(found[at], dtype=torch.float32).view(SIDE, SIDE) for at in (0, 1))
    return light, colour


def _blockwise(channel: Tensor, table: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """A channel [B, 1, H, W] of levels with its cosines rounded to the table's multiples."""
    cosines = _cosines().to(channel)
    blocks = channel.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE) - 128  # [B, 1, H / 8, W / 8, 8, 8]
    kept = table * rounded(cosines @ blocks @ cosines.T / table)
    back = cosines.T @ kept @ cosines + 128
    return back.transpose(3, 4).reshape(channel.shape)


@cache
def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform of type 2, [8, 8]."""
    at = torch.arange(SIDE, dtype=torch.float64)
    found = torch.cos(math.pi / SIDE * at[:, None] * (at + 0.5)) * math.sqrt(2 / SIDE)
    found[0] /= math.sqrt(2)
    return found.float()
