"""Salt-and-pepper noise: rising shares of pixels pushed to white or black, as far as the ball lets them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from metastable.attacks.ascent import Attacked, Best, Misclassify
from metastable.attacks.ball import Ball, Norm
from metastable.attacks.target import Target, seeded


@dataclass(frozen=True, kw_only=True)
class SaltPepper:
    """Random search without gradients, after foolbox's attack of that name (Rauber et al. 2017).

    Attributes:
        norm, eps: the ball; eps 1 in l_inf is the classical attack, smaller ones bound its contrast.
        steps: shares of pixels that are tried: 1/steps, 2/steps ... 1.
        repeats: draws at every share.
        targeted: `labels` are the classes to reach.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    steps: int = 20
    repeats: int = 5
    targeted: bool = False

    @torch.no_grad()
    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """See metastable.attacks.ascent.Attack."""
        target, ball, goal = seeded(target, seed), Ball(self.norm, self.eps), Misclassify(self.targeted)
        rng = torch.Generator().manual_seed(seed)
        rows = torch.arange(len(images), device=images.device)
        best = Best(images)
        turns = range(self.steps * self.repeats)
        for turn in tqdm(turns, desc="attack steps", mininterval=2, leave=False, disable=not progress):
            share = (turn // self.repeats + 1) / self.steps
            drawn = torch.rand((len(images), 1, *images.shape[2:]), generator=rng).to(images)
            # Salt above, pepper below, each on half of the share; all channels of a pixel alike.
            extreme = torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, images))
            x = ball.project(extreme, images)
            best.update(rows, x, goal.strength(target(x), x, labels))
        return best.result
