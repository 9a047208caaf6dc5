"""Annealed ascent: momentum, steps that shrink, and no end before a break is certain.

An attack that stops at the first candidate which a check confirms brings back a narrow break, and fresh
noise saves some of those images.  This one goes on until the margin, smoothed over the last chains, is
wide; its steps shrink, so that it settles; and its candidates are 8-bit images, which is what a server is
sent.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metastable.attacks.ascent import Attacked, Best, Loss, Misclassify, autograd_slope
from metastable.attacks.ball import Ball, Norm
from metastable.attacks.target import Eot, Gradient, Levels, Target


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """x <- project(x + step_t direction(v)), v <- momentum v + gradient / |gradient|_1.

    Step lengths fall geometrically from `first` to `last`, as shares of eps.  The momentum is that of Dong et
    al. 2018, the gradient the exact one of the mean over `samples` chains (Athalye et al. 2018), taken at the
    8-bit image next to x.  Each of these images is a candidate, its strength the margin averaged over
    the last `window` chains, which are of the last few images; the strongest is kept.  An image leaves when
    a full window says that it is wrong by `certain` logits.

    Another target than an `Eot` has no noise: a window is one look there.

    Attributes:
        steps: gradients, at most.
        samples: chains of each, half of them mirrored where the classifier averages mirror images.
        loss: what is climbed (metastable.attacks.ascent.Misclassify).
        random_start: begin at a random point of the ball instead of at the image; restarts always do.
        restarts: runs, the later ones for images that are not yet wrong by half of `certain`.
        gradient, levels, bf16: see metastable.attacks.target.Eot.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    steps: int = 45
    samples: int = 16
    loss: Loss = "ce"
    first: float = 1 / 3
    last: float = 1 / 20
    momentum: float = 0.75
    certain: float = 2.0
    window: int = 48
    random_start: bool = False
    restarts: int = 1
    gradient: Gradient = "exact"
    levels: Levels = "served"
    bf16: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.samples, self.window, self.restarts) < 1 or not 0 < self.last <= self.first:
            raise ValueError(
                f"steps, samples, window and restarts must be 1 or more and 0 < last <= first, not {self}"
            )

    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """See metastable.attacks.ascent.Attack."""
        images = images.detach()
        best = Best(images)
        for restart in range(self.restarts):
            rows = (best.result.strength < self.certain / 2).nonzero().squeeze(1)
            if len(rows):
                # 32 bits, because PyTorch's CPU generator looks at no more of a seed.
                fresh = int(np.random.SeedSequence([seed, restart]).generate_state(1)[0])
                self._run(target, images, labels, rows, best, fresh, restart > 0, progress)
        return best.result

    def _run(
        self,
        target: Target,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
        best: Best,
        seed: int,
        again: bool,
        progress: bool,
    ) -> None:
        ball, goal = Ball(self.norm, self.eps), Misclassify(kind=self.loss)
        attacked, looks = self.on(target, seed)
        x, mover = images.clone(), self._mover(images, ball)
        if self.random_start or again:
            x[rows] = self._start(images[rows], ball, torch.Generator().manual_seed(seed))
        recent = Recent(len(x), looks, x.device)
        bar = tqdm(range(self.steps + 1), "attack steps", mininterval=2, leave=False, disable=not progress)
        for turn in bar:
            here, wanted = ball.eight_bit(x[rows], images[rows]), labels[rows]
            logits, gradient = autograd_slope(attacked, here, wanted, goal)
            margin = recent.add(rows, goal.strength(logits, here, wanted))
            strength = mover.look(rows, here, margin, logits)
            best.update(rows, here, strength)
            going = ~(recent.full(rows) & (strength >= self.certain))
            rows = rows[going]
            if turn == self.steps or not len(rows):
                break
            length = self.eps * annealed(turn, self.steps, self.first, self.last)
            x[rows] = ball.project(x[rows] + length * mover.move(rows, gradient[going]), images[rows])

    def _start(self, images: Tensor, ball: Ball, rng: torch.Generator) -> Tensor:
        """Where a run begins that does not begin at the images."""
        return ball.start(images, rng)

    def _mover(self, images: Tensor, ball: Ball) -> Mover:
        return Momentum(images, ball, self.momentum)

    def on(self, target: Target, seed: int) -> tuple[Target, int]:
        """The target with the attack's chains and gradient, and how many of its answers make a window."""
        if not isinstance(target, Eot):
            return target, 1
        random = target.defense.setting.random
        samples = self.samples if random else 1  # where chains do not differ there is nothing to average
        if random and (target.defense.averages_mirrors or target.defense.setting.mirror):
            samples += samples % 2  # as many mirrored as not
        given = dataclasses.replace(
            target,
            samples=samples,
            gradient=self.gradient,
            seed=seed,
            stream=0,
            mirror=samples > 1,
            levels=self.levels,
            bf16=self.bf16,
        )
        return given, math.ceil(self.window / samples) if random else 1


class Mover(Protocol):
    """Where an image goes from here, and what a candidate is worth."""

    def look(self, rows: Tensor, x: Tensor, margin: Tensor, logits: Tensor) -> Tensor:
        """The strength [B] of candidates x [B, C, H, W] of the images `rows`.

        They are wrong by margin [B], a mean over the last looks; this look had logits [B, classes].
        """

    def move(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """What is added, times the step, to images that were looked at last, with the gradient there."""


class Momentum:
    """Along the direction of the running mean of gradients; a candidate is worth its margin."""

    def __init__(self, images: Tensor, ball: Ball, decay: float) -> None:
        self._velocity, self._ball, self._decay = torch.zeros_like(images), ball, decay

    def look(self, rows: Tensor, x: Tensor, margin: Tensor, logits: Tensor) -> Tensor:
        """See `Mover`."""
        return margin

    def move(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """See `Mover`."""
        length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-38)
        self._velocity[rows] = self._decay * self._velocity[rows] + gradient / length
        return self._ball.direction(self._velocity[rows])


class Recent:
    """The last few margins of every image, and their mean.

    Args:
        n: images.
        looks: margins that are averaged.
    """

    def __init__(self, n: int, looks: int, device: torch.device) -> None:
        self._margins = torch.full((looks, n), torch.nan, device=device)

    def add(self, rows: Tensor, margin: Tensor) -> Tensor:
        """Note a margin [B] of the images `rows`; returns their means over those there are, [B]."""
        self._margins[:, rows] = self._margins[:, rows].roll(1, 0)
        self._margins[0, rows] = margin.float()
        return self._margins[:, rows].nanmean(0)

    def full(self, rows: Tensor) -> Tensor:
        """bool [B], of which images the mean is over all looks."""
        return ~self._margins[-1, rows].isnan()


def annealed(turn: int, steps: int, first: float, last: float) -> float:
    """The geometric way from `first`, at turn 0, to `last`, at turn steps - 1."""
    return first * math.exp(math.log(last / first) * turn / max(1, steps - 1))
