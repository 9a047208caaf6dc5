"""The updates of the dynamics as forward graphs, with every parameter a column of the batch.

Chains of different settings run in one batch, so what `metastable.dynamics` takes as a number is
here a tensor [B].  There is no autograd and no data-dependent control flow: the same module is run
by PyTorch, captured in CUDA graphs and written by export.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metastable.dynamics import ScoreFunction, score_norm
from metastable.dynamics.langevin import langevin_step

DELTA = 1e-3
"""How far ahead the score is looked at: `adaptive_step_size`'s delta, as in ADP's code."""

AHEAD = 0.3

Precision = Literal["f32", "bf16", "int8"]


def ahead_of(precision: Precision) -> float | None:
    """`AdpUpdate`'s `ahead` where the convolutions are of this precision.

    Below float32 a state and one DELTA scores ahead of it are much the same number, and the step size
    would be noise.
    """
    return None if precision == "f32" else AHEAD


class LangevinSegment(nn.Module):
    """`steps` unrolled Langevin steps (Hill 2021, eq. 3); `network.score` is the score."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, x: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
        """x [B, C, H, W] in [0, 1], tau [B], standard normal noise [steps, B, C, H, W] -> x."""
        score: ScoreFunction = self.network.score  # type: ignore[assignment]
        wide = tau.view(-1, 1, 1, 1)
        for z in noise.unbind(0):
            x = langevin_step(x, score(x), wide, z)
        return x


class AdpUpdate(nn.Module):
    """One update of ADP (Yoon, Hwang and Lee 2021, Algorithm 1) of every chain in the batch.

    With `adaptive` the step size is that of eq. 18, bounded; without, it is the upper bound, and the
    second evaluation of the score is saved.

    Args:
        ahead: how far, in the norm of an image, the score is looked at for the step size; without it,
            DELTA times the score, as published.
    """

    def __init__(self, network: nn.Module, *, adaptive: bool = True, ahead: float | None = None) -> None:
        super().__init__()
        self.network, self.adaptive, self.ahead = network, adaptive, ahead

    def forward(
        self, x: Tensor, fraction: Tensor, low: Tensor, high: Tensor, stop: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W] in [0, 1]; lambda, the step's bounds and the stopping threshold, each [B].

        Returns the next x and, as 0.0 or 1.0 in [B], whether the chain moved: one whose score norm
        is below its threshold stays where it is.
        """
        score: ScoreFunction = self.network.score  # type: ignore[assignment]
        s = score(x)
        norm = score_norm(s)
        alpha = high
        if self.adaptive:
            delta = torch.full_like(norm, DELTA)
            if self.ahead is not None:
                delta = (self.ahead / norm.clamp_min(1e-15)).clamp_min(DELTA)
            flat, there = s.flatten(1), score(x + delta.view(-1, 1, 1, 1) * s).flatten(1)
            # The difference first, or float32 loses it all (see metastable.dynamics.adp).
            shrink = (flat * (flat - there)).sum(1) / flat.square().sum(1).clamp_min(1e-30)
            alpha = torch.minimum(torch.maximum(fraction * delta / shrink.clamp_min(1e-30), low), high)
        moved = (norm >= stop).to(x.dtype)
        after = (x + alpha.view(-1, 1, 1, 1) * s).clamp(0, 1)
        return torch.where(moved.view(-1, 1, 1, 1) > 0, after, x), moved


def columns(rows: Sequence[Sequence[float]]) -> list[Tensor]:
    """Parameters of chains, a tuple each, as one float32 tensor [B] a parameter."""
    return list(torch.tensor(rows, dtype=torch.float32).unbind(1))
