"""Projected gradient descent (Madry et al. 2018).

On the bare classifier this is the transfer attack on any defense in front of it; through an `Eot`
target it is PGD with EOT; `bpda_eot` and `exact` add the verification of candidates to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from metastable.attacks.ascent import (
    Attacked,
    Direction,
    Goal,
    Loss,
    Misclassify,
    Slope,
    ascend,
    autograd_slope,
)
from metastable.attacks.ball import Ball, Norm
from metastable.attacks.target import Target, seeded


@dataclass(frozen=True, kw_only=True)
class Pgd:
    """x <- project(x + step direction(gradient)); see metastable.attacks for the calling convention.

    Attributes:
        norm, eps: the ball.
        step: length of a step in that norm.
        random_start: begin at a uniform point of the ball instead of at the image.
        targeted: `labels` are the classes to reach instead of the true ones.
        loss: `ce`, the cross entropy, or `margin`, whose gradient does not fade where the classifier
            is very sure.
        restarts: runs from different starts; images already beaten sit the later ones out.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 20
    random_start: bool = True
    targeted: bool = False
    loss: Loss = "ce"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or not self.step > 0:
            raise ValueError(f"steps and restarts must be 1 or more and step positive, not {self}")

    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """See metastable.attacks.ascent.Attack."""
        result = self._run(target, images, labels, seed, progress)
        for restart in range(1, self.restarts):
            left = (~result.success).nonzero().squeeze(1)
            if len(left):
                # 32 bits, because PyTorch's CPU generator looks at no more of a seed.
                fresh = int(np.random.SeedSequence([seed, restart]).generate_state(1)[0])
                again = self._run(target, images[left], labels[left], fresh, progress)
                better = again.strength > result.strength[left]
                result.images[left[better]] = again.images[better]
                result.strength[left[better]] = again.strength[better]
        return result

    def _run(self, target: Target, images: Tensor, labels: Tensor, seed: int, progress: bool) -> Attacked:
        attacked, verify = self._targets(target, seed)
        return ascend(
            attacked,
            images,
            labels,
            goal=self._goal(),
            ball=Ball(self.norm, self.eps),
            step=self.step,
            steps=self.steps,
            random_start=self.random_start,
            seed=seed,
            direction=self._direction(attacked, images),
            slope=self._slope(seed),
            verify=verify,
            progress=progress,
        )

    def _targets(self, target: Target, seed: int) -> tuple[Target, Target | None]:
        """What is attacked, and what candidates are verified on."""
        return seeded(target, seed), None

    def _goal(self) -> Goal:
        return Misclassify(self.targeted, self.loss)

    def _slope(self, seed: int) -> Slope:
        return autograd_slope

    def _direction(self, target: Target, images: Tensor) -> Direction:
        ball = Ball(self.norm, self.eps)
        return lambda x, gradient, rows: ball.direction(gradient)


def pgd(
    model: Target,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    step: float = 2 / 255,
    steps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Untargeted l_inf PGD from a random start, for callers who want the images alone: [B, C, H, W]."""
    return Pgd(eps=eps, step=step, steps=steps)(model, images, labels, seed=seed).images
