"""Langevin dynamics of an energy-based model (Hill, Mitchell and Zhu 2021, eq. 3 and 13).

The paper's tau = 0.01 is in the units of [-1, 1]; states here are in [0, 1], where the same step
has tau = 0.005.  Mitchell's short-run purification (2020, section 3.1) is the same dynamics for
K = 15 steps on an energy that was not trained to convergence.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metastable.dynamics import ScoreFunction


def langevin_step(
    x: Tensor, score: Tensor, tau: float | Tensor, noise: Tensor, eta: float | Tensor = 1.0
) -> Tensor:
    """x + (tau^2 / 2) grad log p(x) + eta tau z; x, score and noise z are [B, C, H, W], tau and eta fit.

    eta = 1 is eq. 3, whose steady state is p; another eta (eq. 13) has the temperature eta^2.
    """
    return x + 0.5 * tau**2 * score + eta * tau * noise


def langevin(
    x: Tensor,
    score: ScoreFunction,
    *,
    tau: float,
    steps: int,
    noise: Callable[[int], Tensor],
    eta: float = 1.0,
) -> Tensor:
    """`steps` Langevin steps from x, without clamping; noise(t) gives step t's normals."""
    for t in range(steps):
        x = langevin_step(x, score(x), tau, noise(t), eta)
    return x
