"""Langevin dynamics of an energy-based model (Hill, Mitchell and Zhu 2021, eq. 3).

The paper's tau = 0.01 is in the units of [-1, 1]; states here are in [0, 1], where the same step
has tau = 0.005.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metastable.dynamics import ScoreFunction


def langevin_step(x: Tensor, score: Tensor, tau: float | Tensor, noise: Tensor) -> Tensor:
    """x + (tau^2 / 2) grad log p(x) + tau z; x, score and noise z are [B, C, H, W], tau fits them."""
    return x + 0.5 * tau**2 * score + tau * noise


def langevin(
    x: Tensor, score: ScoreFunction, *, tau: float, steps: int, noise: Callable[[int], Tensor]
) -> Tensor:
    """`steps` Langevin steps from x, without clamping; noise(t) gives step t's normals."""
    for t in range(steps):
        x = langevin_step(x, score(x), tau, noise(t))
    return x
