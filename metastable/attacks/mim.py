"""The momentum iterative method (Dong et al. 2018): PGD along a running mean of gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metastable.attacks.ascent import Direction
from metastable.attacks.ball import Ball
from metastable.attacks.pgd import Pgd
from metastable.attacks.target import Target


@dataclass(frozen=True, kw_only=True)
class Mim(Pgd):
    """g <- decay g + gradient / |gradient|_1, then a step along g (eq. 6 and 7 there).

    The paper's step is eps / steps, from the image itself.
    """

    step: float = 0.8 / 255
    steps: int = 10
    random_start: bool = False
    decay: float = 1.0

    def _direction(self, target: Target, images: Tensor) -> Direction:
        ball = Ball(self.norm, self.eps)
        momentum = torch.zeros_like(images)

        def direction(x: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
            length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-38)
            momentum[rows] = self.decay * momentum[rows] + gradient / length
            return ball.direction(momentum[rows])

        return direction
