"""Attacks in training and in checks: sign steps in an l_inf ball, all of it on the device.

Metastable.attacks has the attacks that count; these are fast (no candidate is verified, nothing waits for
the device) and can be recorded in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from metastable.training.harden_pipeline import Pipeline

Objective = Callable[[Tensor, int], Tensor]
"""What the attack raises: (images [B, C, H, W], number of the step) to a sum over images."""


def step_length(eps: Tensor | float, steps: int) -> Tensor | float:
    """1.25 eps for FGSM from a random start (Wong et al. 2020: 10/255 of 8/255), 2.5 eps / k for PGD-k."""
    return 1.25 * eps if steps == 1 else 2.5 / steps * eps


def ascend(objective: Objective, x: Tensor, unit: Tensor, *, eps: Tensor | float, steps: int) -> Tensor:
    """x + delta with |delta| <= eps, in [0, 1], after `steps` sign steps from a random start (Madry 2018).

    Args:
        x: images [B, C, H, W] in [0, 1].
        unit: uniform in [-1, 1], of the shape of x: where the start lies in the ball.
        eps: radius, a number or a tensor of no dimensions (which may change between replays of a graph).
    """
    alpha = step_length(eps, steps)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    at = torch.minimum(torch.maximum(x + eps * unit, low), high)
    for i in range(steps):
        at = at.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(at, i), at)
        at = torch.minimum(torch.maximum(at.detach() + alpha * gradient.sign(), low), high)
    return at.detach()


def judge(
    pipeline: Pipeline,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    eot: int,
    bf16: bool,
    votes: int = 8,
    batch: int = 250,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of the pipeline on images as they are and after PGD with EOT, from one random start.

    Each gradient is the mean over `eot` noisy copies (Athalye et al. 2018b); answers are the argmax of mean
    logits over `votes` fresh copies.  An image that is answered wrongly before the attack counts as lost.

    Args:
        images: float32 [N, C, H, W] in [0, 1] on the pipeline's device; labels: int64 [N] there.
        batch: images at once.

    Returns: `natural` and `robust`, in [0, 1].
    """
    rng = torch.Generator(images.device).manual_seed(seed)
    right = torch.zeros(2, device=images.device)

    def noise(x: Tensor, copies: int) -> Tensor:
        shape = (pipeline.dynamics.unroll, copies * len(x), *x.shape[1:])
        return torch.randn(shape, generator=rng, device=x.device)

    def logits(x: Tensor, copies: int) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            made, _ = pipeline(torch.cat([x] * copies), noise(x, copies))
        each: Tensor = made.view(copies, len(x), -1)
        return each

    parts = list(zip(torch.split(images, batch), torch.split(labels, batch), strict=True))
    shown = tqdm(total=len(parts) * steps, desc="judging", unit="step", mininterval=2, leave=False)
    with pipeline.held(), shown as bar:
        for x, y in parts:

            def objective(at: Tensor, _: int, y: Tensor = y) -> Tensor:
                bar.update()
                return F.cross_entropy(logits(at, eot).flatten(0, 1), y.repeat(eot), reduction="sum")

            with torch.no_grad():
                before = logits(x, votes).mean(0).argmax(1) == y
            unit = 2 * torch.rand(x.shape, generator=rng, device=x.device) - 1
            attacked = ascend(objective, x, unit, eps=eps, steps=steps)
            with torch.no_grad():
                after = logits(attacked, votes).mean(0).argmax(1) == y
            right += torch.stack([before.sum(), (before & after).sum()])
    natural, robust = (right / len(images)).tolist()
    return {"natural": natural, "robust": robust}
