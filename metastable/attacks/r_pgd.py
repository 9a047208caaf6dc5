"""R+PGD: an attack that looks for points which the purification leaves alone (MALADE, section 2.1.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metastable.attacks.ascent import Goal, Slope
from metastable.attacks.pgd import Pgd
from metastable.attacks.target import Eot, Target


@dataclass(frozen=True, kw_only=True)
class RPgd(Pgd):
    """PGD on loss(F(x), y) - weight |T(x) - x|_2^2, whose gradient goes through the purification T.

    The second term is the reconstruction loss, summed over pixels and of the mean over the target's chains.
    The target must be an `Eot`.  Raises TypeError for another target.

    Attributes:
        weight: of the reconstruction loss; the source states the plain sum, weight 1.
    """

    weight: float = 1.0

    def _slope(self, seed: int) -> Slope:
        def slope(target: Target, x: Tensor, labels: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
            if not isinstance(target, Eot):
                raise TypeError("R+PGD needs an Eot target: it asks it where it purifies to")
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                logits, purified = target.answers(x)
                moved = (purified - x).square().flatten(1).sum(1)
                loss = goal.loss(logits, x, labels) - self.weight * moved
                (gradient,) = torch.autograd.grad(loss.sum(), x)
            return logits.detach(), gradient.nan_to_num()

        return slope
