"""The anomaly flag: the score norm of the raw image against a calibrated threshold.

|s(x)|_2 is large where the score network sees something to correct (Yoon, Hwang and Lee 2021,
section 5.4 and Appendix F).  The scale depends on the network, so the threshold is the quantile
of training-split images, clean or with benign changes, that gives a stated false-positive rate, kept
with its evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metastable.dynamics import ScoreFunction, score_norm


@dataclass(frozen=True)
class Calibration:
    """Threshold of |s(x)|_2 and the evidence for it.

    Attributes:
        network: the network whose score is measured: `score` or `energy`.
        threshold: norms above it are flagged.
        false_positive_rate: the share of such images that the threshold was set to flag.
        n: how many images it was set on.
        data: name, split and SHA-256 of those images, before any change.
        quantiles: {probability: norm} of their norms, to judge drift by.
        changes: {benign change: how many of the n images had it} (metastable.benign), `clean` for those that
            had none; empty where all are clean.
    """

    network: str
    threshold: float
    false_positive_rate: float
    n: int
    data: dict[str, str]
    quantiles: dict[str, float]
    changes: dict[str, int] = field(default_factory=dict)

    def flags(self, norms: Tensor) -> Tensor:
        """bool [B]: which norms [B] lie above the threshold (a norm that is no number does too)."""
        return ~(norms <= self.threshold)


@torch.inference_mode()
def score_norms(images: Tensor, score: ScoreFunction, batch: int = 250) -> Tensor:
    """|s(x)|_2 of raw images [N, C, H, W] in [0, 1]: [N]."""
    pieces = torch.split(images, batch)
    return torch.cat([score_norm(score(x)) for x in pieces])


def calibrate(
    norms: Tensor,
    *,
    false_positive_rate: float,
    network: str,
    data: dict[str, str],
    changes: Mapping[str, int] | None = None,
) -> Calibration:
    """Threshold at the ceil((n + 1)(1 - rate))-th smallest of the norms [n].

    For exchangeable images the chance that a new one, changed as they were, exceeds it is then at most the
    rate (split conformal prediction; Vovk, Gammerman and Shafer 2005).  Of one change alone it may be more.

    Raises ValueError for a rate outside (0, 1), too few norms for it, or changes of another number of images.
    """
    n = len(norms)
    rank = math.ceil((n + 1) * (1 - false_positive_rate))
    if not 0 < false_positive_rate < 1 or rank > n:
        raise ValueError(f"a false-positive rate of {false_positive_rate} cannot be set on {n} images")
    if changes and sum(changes.values()) != n:
        raise ValueError(f"the changes are of {sum(changes.values())} images, not of {n}")
    ordered = norms.double().sort().values
    marks = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    quantiles = {f"{p:g}": round(float(torch.quantile(ordered, p)), 6) for p in marks}
    threshold = float(ordered[rank - 1])
    return Calibration(network, threshold, false_positive_rate, n, data, quantiles, dict(changes or {}))
