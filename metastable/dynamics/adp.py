"""Adaptive Denoising Purification (Yoon, Hwang and Lee 2021, Algorithm 1).

The score may carry any constant positive factor: the adaptive step divides it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metastable.dynamics import ScoreFunction, score_norm
from metastable.dynamics.base import PUBLISHED, Adaptation, Kind, Network, Normal, Row, no_noise, real, wide
from metastable.dynamics.gaussian import TwoLevels

DELTA = 1e-3
"""How far ahead the score is looked at, in scores, as in the published code (the text's 1e-5 is below
float32's resolution)."""


def adaptive_step_size(
    x: Tensor,
    s: Tensor,
    score: ScoreFunction,
    *,
    fraction: float | Tensor,
    bounds: tuple[float | Tensor, float | Tensor],
    delta: float | Tensor = DELTA,
) -> Tensor:
    """Eq. 18: alpha = lambda delta / (1 - <s(x), s(x')> / |s(x)|^2) with x' = x + delta s(x), [B].

    The step that shrinks the score by the share `fraction`, the paper's lambda.  Where the score does not
    shrink along itself the quotient is negative or huge; the paper's code bounds alpha, and so does this.
    Numbers may be tensors [B].
    """
    delta = torch.as_tensor(delta, dtype=x.dtype, device=x.device)
    flat, there = s.flatten(1), score(x + wide(delta) * s).flatten(1)
    # 1 - <s, s'>/|s|^2 as <s, s - s'>/|s|^2: the difference first, or float32 loses it all.
    shrink = (flat * (flat - there)).sum(1) / flat.square().sum(1).clamp_min(1e-30)
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in bounds)
    return torch.minimum(torch.maximum(fraction * delta / shrink.clamp_min(1e-30), low), high)


@dataclass(frozen=True)
class Ascent(Kind):
    """Chains of ADP, whose parameters are lambda, the bounds of the step size, and the stopping threshold.

    One step is x <- clip(x + alpha s(x), 0, 1); a chain stops where |s(x)| is below its threshold.

    Attributes:
        adaptive: whether alpha is that of eq. 18, within its bounds.  Else it is the upper one (the paper's
            "tuned" step size), and the second evaluation of the score is saved.
    """

    adaptive: bool = True
    name: ClassVar[str] = "adp"
    probe: ClassVar[Row] = (1.0, 1e-3, 1.0, 0.0)
    draws: ClassVar[int] = 0
    clips: ClassVar[bool] = True
    stops: ClassVar[bool] = True

    def step(
        self,
        x: Tensor,
        score: ScoreFunction,
        columns: Sequence[Tensor],
        normal: Normal = no_noise,
        adapt: Adaptation = PUBLISHED,
    ) -> tuple[Tensor, Tensor]:
        fraction, low, high, stop = columns
        s = score(x)
        norm = score_norm(s)
        alpha = high
        if self.adaptive:
            delta = torch.full_like(norm, DELTA)
            if adapt.ahead is not None:
                # Below float32 a state and one DELTA scores ahead of it are much the same number, and the
                # step size would be noise.
                delta = (adapt.ahead / norm.clamp_min(1e-15)).clamp_min(DELTA)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not adapt.hold):
                alpha = adaptive_step_size(x, s, score, fraction=fraction, bounds=(low, high), delta=delta)
        moved = (norm >= stop).to(x.dtype)
        after = (x + wide(alpha) * s).clamp(0, 1)
        return torch.where(wide(moved) > 0, after, x), moved


@dataclass(frozen=True)
class AdpResult:
    """Purified chains x [B, C, H, W] in [0, 1] and the updates each took, int64 [B]."""

    x: Tensor
    steps: Tensor


def adp(
    x: Tensor,
    score: ScoreFunction,
    *,
    steps: int,
    lambda_: float = 0.05,
    bounds: tuple[float, float] = (1e-5, 0.1),
    stop: float = 1e-3,
    hold: bool = False,
) -> AdpResult:
    """Up to `steps` updates of all rows of x with the same parameters; see `Ascent`."""
    kind, made = Ascent("", adaptive=bounds[0] != bounds[1]), torch.zeros(len(x), device=x.device)
    given = [torch.full_like(made, value, dtype=x.dtype) for value in (lambda_, *bounds, stop)]
    for _ in range(steps):
        x, moved = kind.step(x, score, given, adapt=Adaptation(hold=hold))
        made += moved.detach()
    return AdpResult(x, made.long())


@dataclass(frozen=True, kw_only=True)
class Adp(TwoLevels):
    """Noise, and then up to T deterministic steps up the density.

    Attributes:
        network: that gives the score.
        steps: T.
        step_fraction: lambda.
        step_bounds: least and greatest step size; equal ones fix it, and save an evaluation a step.
        stop: stopping threshold on |s(x)|.
    """

    network: Network = "score"
    steps: int = 0
    step_fraction: float = 0.05
    step_bounds: tuple[float, float] = (1e-5, 0.1)
    stop: float = 1e-3
    name: ClassVar[str] = "adp"
    adapts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("step_fraction", real(self.step_fraction) and 0 < self.step_fraction <= 1, "in (0, 1]")
        bounds = self.step_bounds
        good = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(real, bounds))
        good = good and 0 < bounds[0] <= bounds[1] <= 10
        self.require("step_bounds", good, "a list of two numbers, 0 < least <= greatest <= 10")
        object.__setattr__(self, "step_bounds", tuple(bounds))
        self.require("stop", real(self.stop) and self.stop >= 0, "not negative")

    @property
    def kind(self) -> Kind:
        return Ascent(self.network, adaptive=self.step_bounds[0] != self.step_bounds[1])

    def row(self, flagged: bool) -> Row:
        return (self.step_fraction, *self.step_bounds, self.stop)

    def injects(self, flagged: bool) -> float:
        return self.level(flagged)
