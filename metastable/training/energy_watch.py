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

from metastable.training.energy_update import DeviceConfig, Trainer, noise_like

ASTRAY = 10.0  # spreads of U that lie between data and samples where a run has gone astray
PATIENCE = 500  # updates of that
STEEP = 3.0  # times the gradient's expected norm
MARKS = (100, 200, 500)
"""Steps after which a check looks at its chains, beside the last: settings for a CPU stop there."""
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
        return steady and still(check) and check["accuracy"] >= self._config.accuracy


def still(check: Mapping[str, float]) -> bool:
    """Whether the chains of a check neither sank nor climbed by more than energies differ anyway."""
    return abs(check["drift"]) < check["spread"]


def rank(check: Mapping[str, float]) -> tuple[bool, float]:
    """Greater for better weights: first come those whose chains stay, then those whose ends are known."""
    return still(check), check["accuracy"]


@torch.no_grad()
def check(
    trainer: Trainer, classifier: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Chains of `check_steps` from images [N, C, H, W] in [0, 1]: their ends on the CPU, and what they say.

    `drift` is mean U(end) - mean U(image + data noise), `spread` the latter's standard deviation, `accuracy`
    the share of ends that the classifier gives its image's label once the noise of the density is taken off
    them, by one step of Tweedie's formula: few classifiers know images with as much noise.  `course` has
    drift and accuracy after MARKS too.  `denoising` is the loss of score matching at the data noise, 1 for a
    score of zero.
    """
    config, device = trainer.config, trainer.bank.device
    trainer.score.refresh(trainer.network)
    start = images.to(device).contiguous(memory_format=torch.channels_last)
    noise = noise_like(start)
    noisy = start + config.data_noise * noise
    known = trainer.network(noisy)
    error = trainer.network.score(noisy) * config.data_noise + noise
    end, strength, course = start, torch.zeros(()), list[dict[str, float]]()
    for mark in (*(mark for mark in MARKS if mark < config.check_steps), config.check_steps):
        end, strength = trainer.walk(end, mark - (int(course[-1]["steps"]) if course else 0))
        clean = end + config.data_noise**2 * trainer.network.score(end)
        right = classifier(clean.clamp(0, 1)).argmax(1).cpu() == labels
        drift = float(trainer.network(end).mean() - known.mean())
        course.append({"steps": mark, "drift": drift, "accuracy": float(right.float().mean())})
    low, high = end.aminmax()
    return end.cpu(), {
        **course[-1],
        "course": course,
        "images": len(start),
        "spread": float(known.std()),
        "denoising": float(error.square().mean()),
        "strength": float(strength),
        "pixel_min": float(low),
        "pixel_max": float(high),
    }
