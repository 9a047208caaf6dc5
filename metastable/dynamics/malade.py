"""MALADE: relaxation to the data of the image's own class (Srinivasan et al. 2019, eq. 10).

The score is that of a supervised denoising autoencoder (metastable.networks.autoencoder), which estimates
the gradient of log p(x | y), averaged over the labels y that x may have.  There is no accept or reject
step ("MALA-approx", footnote 2), and no clamping.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metastable.dynamics import ScoreFunction


def malade_step(
    x: Tensor, score: Tensor, alpha: float | Tensor, kick: float | Tensor, noise: Tensor
) -> Tensor:
    """x + alpha E[grad log p(x | y)] + kick z; x, score and noise z are [B, C, H, W], the others fit them.

    `kick` is the paper's delta.
    """
    return x + alpha * score + kick * noise


def malade(
    x: Tensor,
    score: ScoreFunction,
    *,
    alpha: float,
    kick: float,
    steps: int,
    noise: Callable[[int], Tensor],
) -> Tensor:
    """N = `steps` steps from x; noise(t) gives step t's normals."""
    for t in range(steps):
        x = malade_step(x, score(x), alpha, kick, noise(t))
    return x
