"""What is known of an image before it is purified: its anomaly score, and the bare classifier's label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.engine.runners import Runner


@dataclass(frozen=True)
class Raw:
    """An image as it came.

    Attributes:
        score: the norm of its score, |s(x)|_2.
        flagged: whether that is above the bundle's threshold.
        label: what the classifier says of it.
        probabilities: of all classes by the classifier, float32 [classes].
    """

    score: float
    flagged: bool
    label: int
    probabilities: Tensor


class Inspector:
    """Looks at images before anything is done to them.

    Args:
        bundle: its calibration is needed: the anomaly flag decides how much noise an image gets.
        runner: made for this bundle.

    Raises BundleError if the bundle has no calibration.
    """

    def __init__(self, bundle: Bundle, runner: Runner) -> None:
        self.calibration = bundle.calibration
        # The threshold was set on float32 scores: fewer bits flag other images.
        network = self.calibration.network
        self._score = partial(runner.score, network) if runner.abilities.exact else bundle.scores[network]
        self._classify = runner.classify

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Raw]:
        """Of images [N, C, H, W] in [0, 1]; on the thread of the engine that has this runner."""
        norms = score_norms(images, self._score)
        flags, said = self.calibration.flags(norms), self._classify(images).float().softmax(1).cpu()
        return [
            Raw(float(n), bool(f), int(p.argmax()), p) for n, f, p in zip(norms, flags, said, strict=True)
        ]
