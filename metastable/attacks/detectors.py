"""What images are flagged by (metastable.anomaly), as an attacker sees it: with gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from metastable.anomaly import prediction_shift
from metastable.defense import Classifier
from metastable.dynamics import ScoreFunction, score_norm


class Statistic(Protocol):
    """What images are flagged by, as an attacker sees it: a value, differentiable, and its threshold."""

    @property
    def threshold(self) -> float:
        """Values above it are flagged."""

    def values(self, x: Tensor, logits: Tensor) -> Tensor:
        """[B], of images x [B, C, H, W] to which the defense answers logits [B, classes]."""


@dataclass(frozen=True)
class Detector:
    """The score norm |s(x)|_2 (metastable.anomaly): known before the image is purified."""

    score: ScoreFunction
    threshold: float

    def values(self, x: Tensor, logits: Tensor) -> Tensor:
        """See `Statistic`."""
        return self.norms(x)

    def norms(self, x: Tensor) -> Tensor:
        """|s(x)|_2, [B]."""
        return score_norm(self.score(x))

    def flags(self, x: Tensor) -> Tensor:
        """bool [B], as metastable.anomaly.Calibration.flags has it."""
        return ~(self.norms(x) <= self.threshold)


@dataclass(frozen=True)
class ShiftDetector:
    """The prediction shift (metastable.anomaly), between the bare classifier and the defense's own answer.

    Where the logits carry no gradient, that of the bare prediction is left: an attacker moves it most easily.
    """

    classifier: Classifier
    threshold: float

    def values(self, x: Tensor, logits: Tensor) -> Tensor:
        """See `Statistic`."""
        return prediction_shift(self.classifier(x).float().softmax(1), logits.softmax(1))
