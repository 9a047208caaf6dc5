"""BPDA+EOT with large-sample verification (Hill, Mitchell and Zhu 2021, Algorithm 1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from metastable.attacks.pgd import Pgd
from metastable.attacks.target import Eot, Gradient, Target


@dataclass(frozen=True, kw_only=True)
class BpdaEot(Pgd):
    """PGD on an `Eot` target: gradients and screening by few chains, breaks confirmed by many.

    X_0 is drawn from the ball.  Each of X_0 ... X_N is classified by the mean of `samples` chains, the
    same that give its gradient (eq. 10).  Where that is wrong, the mean of `check` fresh chains decides:
    if it is wrong too, the image counts as broken and its attack ends.  An image that is never broken
    returns its strongest candidate.  Any other target has no noise, so it is its own verifier.

    Checking many candidates favours the attacker (one lucky check ends the image) and ending at the first
    break favours the defender (it may be a narrow one): judge the result again with fresh chains.

    Attributes:
        steps: N.
        samples: H_adv.
        check: H_def.
    """

    steps: int = 50
    samples: int = 15
    check: int = 150
    gradient: ClassVar[Gradient] = "bpda"

    def _targets(self, target: Target, seed: int) -> tuple[Target, Target | None]:
        if not isinstance(target, Eot):
            return target, target
        attacked = dataclasses.replace(
            target, samples=self.samples, gradient=self.gradient, seed=seed, stream=0
        )
        return attacked, dataclasses.replace(attacked, samples=self.check, stream=1)
