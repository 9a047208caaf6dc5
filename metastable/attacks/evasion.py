"""Label and anomaly flag attacked together: confidently wrong, and below every threshold.

High-confidence examples against detectors are Carlini and Wagner's (2017).  Here each statistic of the flag
has a multiplier for each image, which rises while the statistic is above its threshold and falls while it is
below, so an image walks along the border of the flag instead of being pushed back from far beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metastable.attacks.annealed import Annealed, Mover
from metastable.attacks.ascent import Loss
from metastable.attacks.ball import Ball
from metastable.attacks.detectors import Statistic
from metastable.attacks.target import Levels


@dataclass(frozen=True, kw_only=True)
class Evasion(Annealed):
    """`Annealed` from the natural image along margin and statistics, by Adam's direction (Kingma, Ba 2015).

    A success is a wrong label below every threshold by the share `reserve`, in an 8-bit image.  Where there
    is none, the image that is wrong by most is returned, flagged as it is.

    Attributes:
        statistics: what images are flagged by; all of them count.
        reserve: share of a threshold that is kept.
        rate: by which a multiplier grows or shrinks in a step.
        least, most: bounds of a multiplier, which weighs unit gradients.
    """

    statistics: tuple[Statistic, ...] = field(repr=False)
    loss: Loss = "margin"
    levels: Levels = "unflagged"
    first: float = 1 / 4
    restarts: int = 2
    reserve: float = 0.01
    rate: float = 1.3
    least: float = 0.1
    most: float = 30.0

    def _start(self, images: Tensor, ball: Ball, rng: torch.Generator) -> Tensor:
        """Near the image: most points of the ball are far beyond the threshold."""
        return Ball(ball.norm, ball.eps / 8).start(images, rng)

    def _mover(self, images: Tensor, ball: Ball) -> Mover:
        return _Evader(images, ball, self)


class _Evader:
    """Adam on unit gradient of the margin minus multiplier times unit gradient of each statistic."""

    betas = (0.75, 0.95)

    def __init__(self, images: Tensor, ball: Ball, asked: Evasion) -> None:
        self._ball, self._asked = ball, asked
        self._mean, self._square = torch.zeros_like(images), torch.zeros_like(images)
        self._pull = torch.zeros_like(images)
        self._multipliers = torch.ones(len(asked.statistics), len(images), device=images.device)
        self._turns = torch.zeros(len(images), device=images.device)
        self._ample = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def look(self, rows: Tensor, x: Tensor, margin: Tensor, logits: Tensor) -> Tensor:
        """See `Mover`: above 0 only where wrong and unflagged; then wrong and flagged; then by the margin."""
        asked, passes = self._asked, torch.ones_like(rows, dtype=torch.bool)
        self._pull[rows] = 0
        for statistic, multipliers in zip(asked.statistics, self._multipliers, strict=True):
            with torch.enable_grad():
                at = x.detach().requires_grad_(True)
                values = statistic.values(at, logits)
                (gradient,) = torch.autograd.grad(values.sum(), at)
            below = values.detach() <= (1 - asked.reserve) * statistic.threshold
            factor = torch.where(below, 1 / asked.rate, asked.rate)
            multipliers[rows] = (multipliers[rows] * factor).clamp(asked.least, asked.most)
            self._pull[rows] -= multipliers[rows].view(-1, 1, 1, 1) * _unit(gradient.nan_to_num())
            passes &= below
        self._ample[rows] = margin > asked.certain + 1  # far enough: what is left is the flag
        flagged_wrong = -1 / (1 + margin.clamp_min(0))
        return torch.where(margin > 0, torch.where(passes, margin, flagged_wrong), margin - 1)

    def move(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """See `Mover`."""
        weight = torch.where(self._ample[rows], 0.1, 1.0).view(-1, 1, 1, 1)
        slope = weight * _unit(gradient) + self._pull[rows]
        fast, slow = self.betas
        self._turns[rows] += 1
        turns = self._turns[rows].view(-1, 1, 1, 1)
        self._mean[rows] = fast * self._mean[rows] + (1 - fast) * slope
        self._square[rows] = slow * self._square[rows] + (1 - slow) * slope.square()
        mean = self._mean[rows] / (1 - fast**turns)
        spread = (self._square[rows] / (1 - slow**turns)).sqrt()
        step = (mean / spread.clamp_min(1e-12)).clamp(-1, 1)
        return step if self._ball.norm == "linf" else self._ball.direction(step)


def _unit(gradient: Tensor) -> Tensor:
    """gradient / |gradient|_2, a row; zero stays zero."""
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).view(-1, 1, 1, 1)
    unit: Tensor = gradient / length.clamp_min(1e-20)
    return unit
