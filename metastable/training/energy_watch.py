"""When a run of Algorithm 2 is good enough to stop, and when it has gone astray.

A run that may stop has an energy difference that is small beside its own spread, chains that neither sink nor
climb over some thousand steps, and images at the end of them that a classifier still knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from metastable.training.energy_update import DeviceConfig, Trainer

ASTRAY = 10.0  # spreads of U that lie between data and samples where a run has gone astray
PATIENCE = 500  # updates of that
STEEP = 3.0  # times the gradient's expected norm
Recent = Mapping[str, Sequence[float]]


class Watch:
    """Looks at the figures of a run after every report.

    Args:
        pixels: of an image, all channels.
    """

    def __init__(self, config: DeviceConfig, pixels: int) -> None:
        # At noise sigma the score of data is noise / sigma^2, whose norm is sqrt(pixels) / sigma.
        self.expected = math.sqrt(pixels) / config.data_noise
        self._config, self._beyond = config, 0

    def astray(self, recent: Recent) -> bool:
        """Whether the run should go back to where it was well, with lower rates; it should with no number."""
        for d, spread in zip(recent["d"], recent["spread"], strict=True):
            self._beyond = 0 if abs(d) <= ASTRAY * spread else self._beyond + 1
        steep = not fmean(recent["strength"]) <= STEEP * self.expected
        if gone := steep or self._beyond >= PATIENCE or not all(map(math.isfinite, recent["d"])):
            self._beyond = 0
        return gone

    def done(self, recent: Recent, check: Mapping[str, float]) -> bool:
        """Whether the run may stop after this check."""
        steady = abs(fmean(recent["d"])) < 0.5 * pstdev(recent["d"])
        still = abs(check["drift"]) < check["spread"]
        return steady and still and check["accuracy"] >= self._config.accuracy


@torch.no_grad()
def check(
    trainer: Trainer, classifier: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Chains of `check_steps` from images [N, C, H, W] in [0, 1]: their ends on the CPU, and what they say.

    `drift` is mean U(end) - mean U(image + data noise), `spread` the latter's standard deviation, `accuracy`
    the share of ends that the classifier gives its image's label.
    """
    config, device = trainer.config, trainer.bank.device
    trainer.score.refresh(trainer.network)
    start = images.to(device).contiguous(memory_format=torch.channels_last)
    known = trainer.network(start + config.data_noise * torch.randn_like(start))
    end, strength = trainer.walk(start, config.check_steps)
    right = classifier(end.clamp(0, 1)).argmax(1).cpu() == labels
    low, high = end.aminmax()
    return end.cpu(), {
        "steps": config.check_steps,
        "images": len(start),
        "drift": float(trainer.network(end).mean() - known.mean()),
        "spread": float(known.std()),
        "accuracy": float(right.float().mean()),
        "strength": float(strength),
        "pixel_min": float(low),
        "pixel_max": float(high),
    }
