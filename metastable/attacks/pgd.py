"""Projected gradient descent in the l_inf ball (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    step: float = 2 / 255,
    steps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Untargeted PGD on the cross entropy from a random start: attacked images [B, C, H, W].

    Args:
        model: images [B, C, H, W] in [0, 1] -> logits, differentiable.
        labels: true classes, int64 [B].
        eps: radius of the ball; the result stays within it and in [0, 1].
        seed: of the random start.
    """
    rng = torch.Generator().manual_seed(seed)
    start = torch.empty_like(images).uniform_(-eps, eps, generator=rng)
    x = (images + start).clamp(0, 1)
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        loss = F.cross_entropy(model(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = x + step * gradient.sign()
        x = torch.min(torch.max(x, images - eps), images + eps).clamp(0, 1)
    return x.detach()
