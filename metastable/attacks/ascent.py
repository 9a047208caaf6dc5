"""The loop that gradient attacks share: step, project, judge, keep the strongest candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from metastable.attacks.ball import Ball
from metastable.attacks.target import Target

Loss = Literal["ce", "margin"]
Slope = Callable[[Target, Tensor, Tensor, "Goal"], tuple[Tensor, Tensor]]
"""(target, x, labels, goal) -> logits [B, classes] and the gradient of the goal's loss, [B, C, H, W]."""
Direction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, gradient, rows) -> what is added to x times the step; rows int64 [B] are x's places in the batch."""


@dataclass(frozen=True)
class Attacked:
    """The strongest candidates that an attack found.

    Attributes:
        images: float32 [B, C, H, W], in the attack's ball and in [0, 1].
        success: bool [B], whether the target (the verifier, where there is one) was beaten by them.
        strength: [B], by how much, in logits: the goal's `strength`.  Of a noisy target without a verifier
            it is the luckiest of as many estimates as there were candidates.
    """

    images: Tensor
    strength: Tensor

    @property
    def success(self) -> Tensor:
        return self.strength > 0


class Attack(Protocol):
    """How every attack is called."""

    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """Attack images [B, C, H, W]; labels int64 [B] are their true classes.

        Args:
            seed: of everything random; equal calls give equal results.
            progress: show a bar.
        """


class Goal(Protocol):
    """What an attack wants, a row of the batch each."""

    def loss(self, logits: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """[B], differentiable: what the attack makes larger."""

    def strength(self, logits: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """[B]: positive where the attack has succeeded, larger where it has done so more."""


@dataclass(frozen=True)
class Misclassify:
    """A wrong class or, targeted, the class that `labels` names, by cross entropy or by margin."""

    targeted: bool = False
    kind: Loss = "ce"

    def loss(self, logits: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        if self.kind == "margin":
            return self.strength(logits, x, labels)
        entropy = F.cross_entropy(logits, labels, reduction="none")
        return -entropy if self.targeted else entropy

    def strength(self, logits: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        named = logits.gather(1, labels[:, None]).squeeze(1)
        rival = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        return named - rival if self.targeted else rival - named


class Best:
    """The strongest candidate of each image so far; `start` [B, C, H, W] until there is one."""

    def __init__(self, start: Tensor) -> None:
        self._images = start.clone()
        self._strength = torch.full((len(start),), -torch.inf, device=start.device)

    def update(self, rows: Tensor, x: Tensor, strength: Tensor) -> None:
        """Offer candidates x for the images `rows`."""
        better = strength > self._strength[rows]
        self._images[rows[better]] = x[better]
        self._strength[rows[better]] = strength[better].float()

    @property
    def result(self) -> Attacked:
        return Attacked(self._images, self._strength)


@torch.no_grad()
def judged(judge: Target, x: Tensor, images: Tensor, labels: Tensor, goal: Goal) -> Attacked:
    """Candidates x [B, C, H, W] by their strength on `judge`; what is still its image has failed."""
    best = Best(images)
    if len(moved := (x != images).flatten(1).any(1).nonzero().squeeze(1)):
        at = x[moved]
        best.update(moved, at, goal.strength(judge(at), at, labels[moved]))
    return best.result


def autograd_slope(target: Target, x: Tensor, labels: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the summed loss by autograd; see `Slope`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = target(x)
        (gradient,) = torch.autograd.grad(goal.loss(logits, x, labels).sum(), x)
    # A long chain's gradient may overflow; a pixel without a number stays where it is.
    return logits.detach(), gradient.nan_to_num()


def ascend(
    target: Target,
    images: Tensor,
    labels: Tensor,
    *,
    goal: Goal,
    ball: Ball,
    step: float,
    steps: int,
    random_start: bool,
    seed: int,
    direction: Direction,
    slope: Slope = autograd_slope,
    verify: Target | None = None,
    progress: bool = False,
) -> Attacked:
    """Projected ascent (Hill 2021, eq. 8) over X_0 ... X_steps, all of which are candidates.

    With `verify`, a candidate that beats the target is checked there, counts only if it beats that as
    well, and ends its image (Hill 2021, Algorithm 1).  Without, every image takes all steps.
    A clean image (X_0 without a random start) is a candidate only where it has succeeded already.
    """
    images = images.detach()
    x = ball.start(images, torch.Generator().manual_seed(seed)) if random_start else images.clone()
    best = Best(x)
    rows = torch.arange(len(x), device=x.device)
    for turn in tqdm(range(steps + 1), desc="attack steps", mininterval=2, leave=False, disable=not progress):
        here, wanted = x[rows], labels[rows]
        if turn < steps:
            logits, gradient = slope(target, here, wanted, goal)
        else:
            with torch.no_grad():
                logits, gradient = target(here), torch.empty(0)
        with torch.no_grad():
            strength = goal.strength(logits, here, wanted)
            if verify is not None and (at := (strength > 0).nonzero().squeeze(1)).numel():
                strength[at] = goal.strength(verify(here[at]), here[at], wanted[at])
        broken = strength > 0
        counts = broken if turn == 0 and not random_start else torch.ones_like(broken)
        best.update(rows[counts], here[counts], strength[counts])
        going = ~broken if verify is not None else torch.ones_like(broken)
        rows, here = rows[going], here[going]
        if turn == steps or not len(rows):
            break
        moved = here + step * direction(here, gradient[going], rows)
        x[rows] = ball.project(moved, images[rows])
    return best.result
