"""Simultaneous perturbation: PGD on a gradient estimated from queries (Spall 1992; Uesato et al. 2018).

It needs answers only, so it also sees through gradients that are masked or piecewise constant.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from metastable.attacks.ascent import Goal, Slope
from metastable.attacks.pgd import Pgd
from metastable.attacks.target import Eot, Target

IMAGES_AT_ONCE = 128  # bounds memory; the estimate does not depend on it but through the target's noise


@dataclass(frozen=True, kw_only=True)
class Spsa(Pgd):
    """gradient ~ mean of (L(x + r v) - L(x - r v)) v / 2 r over v uniform in {-1, 1}^D (ADP, Table 1).

    The ADP paper steps along its sign, as this does (Uesato et al. use Adam).  Points x +- r v are clipped
    to [0, 1], because a server takes no others.

    Attributes:
        queries: an image and step, 2 for each v; the paper's 1 280.
        radius: r.
        chains: of an `Eot` target, for each query: their mean takes care of the noise.  Candidates are
            judged by as many as the target has.
    """

    queries: int = 1280
    radius: float = 0.01
    chains: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 2 or self.queries % 2 or self.chains < 1:
            raise ValueError(f"queries must be even, from 2, and chains 1 or more, not {self}")

    def _slope(self, seed: int) -> Slope:
        rng = torch.Generator().manual_seed(seed + 1)
        probed: Target | None = None

        @torch.no_grad()
        def slope(target: Target, x: Tensor, labels: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
            nonlocal probed
            if probed is None:  # once: its chains are fresh in every call
                probed = self._probed(target)
            gradient = torch.zeros_like(x)
            pairs, at_once = self.queries // 2, max(1, IMAGES_AT_ONCE // (2 * len(x)))
            for start in range(0, pairs, at_once):
                count = min(at_once, pairs - start)
                v = torch.randint(0, 2, (count, *x.shape), generator=rng).to(x) * 2 - 1
                probes = torch.cat([x + self.radius * v, x - self.radius * v]).clamp(0, 1)  # [2 n, B, ...]
                flat = probes.flatten(0, 1)
                losses = goal.loss(probed(flat), flat, labels.repeat(2 * count)).view(2, count, len(x))
                change = (losses[0] - losses[1]) / (2 * self.radius)
                gradient += (change[..., None, None, None] * v).sum(0) / pairs
            return target(x), gradient

        return slope

    def _probed(self, target: Target) -> Target:
        return (
            dataclasses.replace(target, samples=self.chains, stream=2) if isinstance(target, Eot) else target
        )
