"""Adaptive Denoising Purification (Yoon, Hwang and Lee 2021, Algorithm 1).

The score may carry any constant positive factor: the adaptive step divides it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metastable.dynamics import ScoreFunction, score_norm


@dataclass(frozen=True)
class AdpResult:
    """Purified chains x [B, C, H, W] in [0, 1] and the updates each took, int64 [B]."""

    x: Tensor
    steps: Tensor


def inject(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """x_0 = clip(x + sigma z, 0, 1), with one sigma a chain: [B].

    The clip is in the text of the paper's experiments; Algorithm 1 and eq. 12 have none.
    """
    return (x + sigma.view(-1, 1, 1, 1) * noise).clamp(0, 1)


def adaptive_step_size(
    x: Tensor, s: Tensor, score: ScoreFunction, *, lambda_: float, delta: float, bounds: tuple[float, float]
) -> Tensor:
    """Eq. 18: alpha = lambda delta / (1 - <s(x), s(x')> / |s(x)|^2) with x' = x + delta s(x), [B].

    The step that shrinks the score by the share lambda.  Where the score does not shrink along
    itself the quotient is negative or huge; the paper's code bounds alpha, and so does this.  Equal
    bounds fix alpha (the paper's "tuned" step size) and save the evaluation at x'.
    """
    if bounds[0] == bounds[1]:
        return torch.full((len(x),), bounds[0], dtype=x.dtype, device=x.device)
    flat, ahead = s.flatten(1), score(x + delta * s).flatten(1)
    # 1 - <s, s'>/|s|^2 as <s, s - s'>/|s|^2: the difference first, or float32 loses it all.
    shrink = (flat * (flat - ahead)).sum(1) / flat.square().sum(1).clamp_min(1e-30)
    alpha = lambda_ * delta / shrink.clamp_min(1e-30)
    return alpha.clamp(*bounds)


def adp(
    x: Tensor,
    score: ScoreFunction,
    *,
    steps: int,
    lambda_: float = 0.05,
    delta: float = 1e-3,
    bounds: tuple[float, float] = (1e-5, 0.1),
    stop: float = 1e-3,
    hold: bool = False,
) -> AdpResult:
    """Up to `steps` deterministic updates x <- clip(x + alpha s(x), 0, 1).

    A chain stops where |s(x)| < stop; the others go on in a smaller batch.
    Step sizes depend on x; `hold` keeps them out of autograd's graph, for an attacker's sake.
    delta is 1e-3 as in the published code (the text's 1e-5 is below float32's resolution).
    """
    taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    moving = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        at = moving.nonzero().squeeze(1)
        if not len(at):
            break
        here = x[at]
        s = score(here)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not hold):
            alpha = adaptive_step_size(here, s, score, lambda_=lambda_, delta=delta, bounds=bounds)
        going = score_norm(s) >= stop
        after = (here + alpha.view(-1, 1, 1, 1) * s).clamp(0, 1)
        x = x.index_copy(0, at, torch.where(going.view(-1, 1, 1, 1), after, here))
        taken = taken.index_add(0, at, going.long())
        moving = moving.index_copy(0, at, going)
    return AdpResult(x, taken)
