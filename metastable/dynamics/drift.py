"""Steps that are a share of the score and a share of noise: what Langevin dynamics and MALADE are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metastable.dynamics import ScoreFunction
from metastable.dynamics.base import PUBLISHED, Adaptation, Kind, Normal, Row, wide


def drift_step(
    x: Tensor, score: Tensor, share: float | Tensor, strength: float | Tensor, noise: Tensor
) -> Tensor:
    """x + share * score + strength * z; x, score and noise z are [B, C, H, W], the others fit them."""
    return x + share * score + strength * noise


def drift(
    x: Tensor,
    score: ScoreFunction,
    *,
    share: float,
    strength: float,
    steps: int,
    noise: Callable[[int], Tensor],
) -> Tensor:
    """`steps` steps from x, without clipping; noise(t) gives step t's normals."""
    for t in range(steps):
        x = drift_step(x, score(x), share, strength, noise(t))
    return x


@dataclass(frozen=True)
class Drift(Kind):
    """Chains whose parameters are the factors of score and noise."""

    name: ClassVar[str] = "drift"
    probe: ClassVar[Row] = (1e-3, 1e-3)

    def step(
        self,
        x: Tensor,
        score: ScoreFunction,
        columns: Sequence[Tensor],
        normal: Normal,
        adapt: Adaptation = PUBLISHED,
    ) -> tuple[Tensor, Tensor]:
        share, strength = columns
        return drift_step(x, score(x), wide(share), wide(strength), normal(0)), torch.ones_like(share)

    def factors(self, columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        share, strength = columns
        return share, strength
