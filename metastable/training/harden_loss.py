"""The losses of `harden`, as functions of the pipeline, images and noise alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from metastable.training.harden_attack import Objective, ascend
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_pipeline import Pipeline


def passes(config: HardenConfig, attack_steps: int) -> tuple[int, int, int]:
    """Passes through the pipeline that an update makes, each with noise of its own.

    Those of the attack, those of the reference that TRADES attacks away from, and those of the loss.
    """
    if config.loss == "trades":
        return (attack_steps if config.attacks else 0), 1, 2
    return (attack_steps if config.attacks else 0), 0, config.copies_a_loss


def attack(
    pipeline: Pipeline,
    x: Tensor,
    y: Tensor,
    unit: Tensor,
    noise: Tensor,
    eps: Tensor | float,
    config: HardenConfig,
    steps: int,
) -> Tensor:
    """Images [B, C, H, W] moved against the whole pipeline, with gradients through purifier and noise.

    What rises is the cross entropy, or with TRADES the KL from the clean answer (Zhang et al. 2019).

    Args:
        unit: uniform in [-1, 1], where each image starts in its ball.
        noise: [passes, n, B, C, H, W]; the first `steps` are the attack's, the next is TRADES's reference.
    """
    objective: Objective

    def natural(at: Tensor, i: int) -> Tensor:
        return F.cross_entropy(pipeline(at, noise[i])[0], y, reduction="sum")

    with pipeline.held():
        objective = natural
        if config.loss == "trades":
            with torch.no_grad():
                reference = pipeline(x, noise[steps])[0].softmax(1)

            def away(at: Tensor, i: int) -> Tensor:
                return F.kl_div(pipeline(at, noise[i])[0].log_softmax(1), reference, reduction="sum")

            objective = away
        return ascend(objective, x, unit, eps=eps, steps=steps)


def loss(
    pipeline: Pipeline, x: Tensor, moved: Tensor, y: Tensor, noise: Tensor, config: HardenConfig
) -> tuple[Tensor, Tensor]:
    """The loss of an update, a mean over the batch, and the share of answers that were right.

    Args:
        x, moved: clean and attacked images [B, C, H, W]; equal in mode stability.
        y: labels [B]; in mode stability the classifier's own (Salman et al. 2020).
        noise: [copies, n, B, C, H, W], none of it used in the attack.
    """
    copies = len(noise)
    # cat, and not repeat, which would lay images out anew.
    clean = torch.cat([x] * copies) if copies > 1 else x
    given = moved
    if config.loss == "trades":
        given = torch.cat([x, moved])
    elif copies > 1:
        given = torch.cat([moved] * copies)
    z = noise.transpose(0, 1).flatten(1, 2)  # [n, copies B, C, H, W]
    logits, purified = pipeline(given, z)
    each = logits.view(copies, len(x), -1)
    if config.loss == "trades":
        natural, attacked = each
        value = F.cross_entropy(natural, y, label_smoothing=config.smoothing)
        value = value + config.beta * F.kl_div(
            attacked.log_softmax(1), natural.log_softmax(1), reduction="batchmean", log_target=True
        )
        right = attacked.argmax(1) == y
    else:
        value = F.cross_entropy(logits, y.repeat(copies), label_smoothing=config.smoothing)
        right = each.mean(0).argmax(1) == y
        if copies > 1:
            value = value + consistency(each, config.weight_of_consistency, config.entropy)
    if config.weight_of_denoising:
        unit = config.sigma if config.sigma else 0.1
        error = (purified.float() - clean).square().mean() / unit**2
        value = value + config.weight_of_denoising * error
    return value, right.float().mean()


def consistency(logits: Tensor, weight: float, entropy: float) -> Tensor:
    """weight x KL(mean of softmax, each softmax) + entropy x H(mean), Jeong and Shin 2020.

    Args: logits [copies, B, classes].  A mean over copies and batch.
    """
    log_p = logits.log_softmax(2)
    mean = log_p.exp().mean(0)
    log_mean = mean.clamp_min(1e-12).log()
    kl = (mean * (log_mean - log_p)).sum(2).mean()
    return weight * kl - entropy * (mean * log_mean).sum(1).mean()
