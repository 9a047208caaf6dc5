"""Joint attacks on purification (Yoon, Hwang and Lee 2021, Table 1).

They climb the classifier's loss and walk where the purification would walk anyway, so that little of
the attack is taken back and the score norm stays low.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from metastable.attacks.ascent import Direction
from metastable.attacks.ball import Ball
from metastable.attacks.bpda_eot import BpdaEot
from metastable.attacks.target import Eot, Target


@dataclass(frozen=True, kw_only=True)
class Joint(BpdaEot):
    """x + step (weight sign(pull) + (1 - weight) sign(gradient)); in l_2, unit vectors for signs.

    The target must be an `Eot`; its gradient is BPDA's over `samples` chains, which is the paper's
    "+EOT".  Raises TypeError for another target.

    Attributes:
        pull: `score`, Joint (score): s(x); `full`, Joint (full): f_theta(x) - x, the mean over chains
            of what the whole purification changes.
        weight: the paper's epsilon, 0.5.
    """

    pull: Literal["score", "full"] = "score"
    weight: float = 0.5

    def _direction(self, target: Target, images: Tensor) -> Direction:
        if not isinstance(target, Eot):
            raise TypeError("the joint attacks need an Eot target: they ask it where it purifies to")
        ball, eot = Ball(self.norm, self.eps), target

        def direction(x: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
            pulled = eot.defense.score(x) if self.pull == "score" else eot.purified(x) - x
            return self.weight * ball.direction(pulled.detach()) + (1 - self.weight) * ball.direction(
                gradient
            )

        return direction
