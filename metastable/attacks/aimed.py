"""A targeted attack called like the others: with the true labels, it picks the class to reach itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metastable.attacks.ascent import Attack, Attacked
from metastable.attacks.target import Target, seeded


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """Aims at the runner-up: the wrong class to which the target gives the largest logit.

    Attributes:
        attack: a targeted attack; success is what it calls success.
    """

    attack: Attack

    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """See metastable.attacks.ascent.Attack."""
        with torch.no_grad():
            logits = seeded(target, seed)(images)
        aims = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        return self.attack(target, images, aims, seed=seed, progress=progress)
