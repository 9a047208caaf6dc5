"""An attack on classifier and anomaly flag together: confidently wrong, and not flagged.

High-confidence examples against detectors are Carlini and Wagner's (2017, as the Lecture tells); how
the two aims are combined is selective PGD (Bryniarski et al. 2022, "Evading adversarial example
detection defenses with orthogonal projected gradient descent"), which needs no weight between them.
Against a setting with `sigma_unflagged` passing the flag also buys less noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metastable.attacks.ascent import Goal, Misclassify
from metastable.attacks.detectors import Detector
from metastable.attacks.exact import Exact


@dataclass(frozen=True)
class Undetected:
    """Wrong by `confidence` first, then a lower score norm, a step at a time, each image by itself."""

    wrong: Misclassify
    detector: Detector
    confidence: float

    def loss(self, logits: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        margin = self.wrong.strength(logits, x, labels)
        return torch.where(margin < self.confidence, margin, -self.detector.norms(x))

    def strength(self, logits: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """The margin where wrong and unflagged; else the worse of the two shortfalls, at most 0."""
        margin = self.wrong.strength(logits, x, labels)
        slack = 1 - self.detector.norms(x) / self.detector.threshold
        # `<=` as in the flag: an image on the threshold passes.
        return torch.where((margin > 0) & (slack >= 0), margin, torch.minimum(margin, slack).clamp_max(0))


@dataclass(frozen=True, kw_only=True)
class ScoreAware(Exact):
    """`Exact` with that goal; a success is a wrong label without the flag.

    Attributes:
        detector: the flag to pass.
        confidence: margin in logits that is kept while the score norm is lowered.
    """

    detector: Detector = field(repr=False)
    confidence: float = 1.0

    def _goal(self) -> Goal:
        return Undetected(Misclassify(self.targeted), self.detector, self.confidence)
