"""Two statistics of an image that purification brings along, each against a calibrated threshold.

* The score norm |s(x)|_2 of the raw image is large where the score network sees something to correct (Yoon,
  Hwang and Lee 2021, section 5.4 and Appendix F).  It is known before an image is purified.
* The prediction shift is the total variation distance between what the classifier says of the raw image and
  what the chains say of it: large where purification changed its mind, as in feature squeezing (Xu, Evans and
  Qi 2018).  It costs nothing, because both predictions are there.

Their scales depend on the networks, and that of the shift on the setting.  So each threshold is the quantile
of training-split images, clean or with benign changes, that gives a stated false-positive rate, kept with its
evidence.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor

from metastable.dynamics import ScoreFunction, score_norm
from metastable.pixels import at_most, most_pixels

MARKS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Probabilities of the quantiles that a calibration keeps."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The threshold of a statistic and the evidence for it.

    Attributes:
        threshold: values above it are flagged.
        false_positive_rate: the share of such images that the threshold was set to flag.
        n: how many images it was set on.
        data: name, split and SHA-256 of those images, before any change.
        quantiles: {probability: value} of theirs, to judge drift by.
        changes: {benign change: how many of the n images had it} (metastable.benign), `clean` for those that
            had none; empty where all are clean.
    """

    threshold: float
    false_positive_rate: float
    n: int
    data: dict[str, str]
    quantiles: dict[str, float]
    changes: dict[str, int] = field(default_factory=dict)

    def flags(self, values: Tensor) -> Tensor:
        """bool [B]: which values [B] lie above the threshold (one that is no number does too)."""
        return ~(values <= self.threshold)

    @cached_property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(probability, value) of the quantiles, neither ever falling; () where there are none."""
        marks = {share: at for text, at in self.quantiles.items() if (share := _share(text)) is not None}
        return tuple(zip(sorted(marks), sorted(marks.values()), strict=True))

    def rank(self, value: float) -> float | None:
        """The share of such images whose value is smaller, between quantiles by straight lines.

        Of such images it is spread evenly over [0, 1], whatever the statistic.  1 above the last quantile;
        None where there are none.
        """
        if not self.curve:
            return None
        shares, values = [0.0, *(share for share, _ in self.curve)], [0.0, *(at for _, at in self.curve)]
        above = bisect_left(values, value)
        if above == len(values):
            return 1.0
        if above == 0:
            return 0.0
        part = (value - values[above - 1]) / (values[above] - values[above - 1])
        return shares[above - 1] + part * (shares[above] - shares[above - 1])


def _share(text: str) -> float | None:
    """A probability as a key of JSON; None for what is none: bundles are written by others too."""
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share < 1 else None


@dataclass(frozen=True, kw_only=True)
class Calibration(Threshold):
    """The threshold of |s(x)|_2.

    Attributes:
        network: the network whose score is measured: `score` or `energy`.
    """

    network: str


@torch.inference_mode()
def score_norms(images: Tensor, score: ScoreFunction, batch: int = 250) -> Tensor:
    """|s(x)|_2 of raw images [N, C, H, W] in [0, 1]: [N]; at most `batch` of them at a time."""
    pieces = torch.split(images, at_most(batch, images.shape, most_pixels(images.device)))
    return torch.cat([score_norm(score(x)) for x in pieces])


def prediction_shift(bare: Tensor, purified: Tensor) -> Tensor:
    """Half of |p - q|_1 between what the raw image and the chains are said to be: [B], from 0 to 1.

    Of probabilities [B, classes] each.  It is the total variation distance: half the statistic of Xu, Evans
    and Qi (2018).
    """
    return 0.5 * (bare - purified).abs().sum(-1)


def calibrate(
    norms: Tensor,
    *,
    false_positive_rate: float,
    network: str,
    data: dict[str, str],
    changes: Mapping[str, int] | None = None,
) -> Calibration:
    """The calibration of a network's score norms [n]; see `threshold_of`, which raises the same."""
    found = threshold_of(norms, false_positive_rate=false_positive_rate, data=data, changes=changes)
    return Calibration(network=network, **{f.name: getattr(found, f.name) for f in fields(found)})


def check_rate(rate: float, n: int) -> int:
    """ceil((n + 1)(1 - rate)), the rank of the threshold among n values.

    Raises ValueError for a rate outside (0, 1) or too few values for it.
    """
    if not 0 < rate < 1 or (rank := math.ceil((n + 1) * (1 - rate))) > n:
        raise ValueError(
            f"a false-positive rate of {rate:g} cannot be set on {n} images: give a share in (0, 1), and "
            "more images for a smaller one"
        )
    return rank


def threshold_of(
    values: Tensor,
    *,
    false_positive_rate: float,
    data: dict[str, str],
    changes: Mapping[str, int] | None = None,
) -> Threshold:
    """Threshold at the ceil((n + 1)(1 - rate))-th smallest of the values [n].

    For exchangeable images the chance that a new one, changed as they were, exceeds it is then at most the
    rate (split conformal prediction; Vovk, Gammerman and Shafer 2005).  Of one change alone it may be more.

    Raises ValueError for a rate outside (0, 1), too few values for it, or changes of another number
    of images.
    """
    n = len(values)
    rank = check_rate(false_positive_rate, n)
    if changes and sum(changes.values()) != n:
        raise ValueError(f"the changes are of {sum(changes.values())} images, not of {n}")
    ordered = values.double().sort().values
    quantiles = {f"{p:g}": round(float(torch.quantile(ordered, p)), 6) for p in MARKS}
    return Threshold(
        threshold=float(ordered[rank - 1]),
        false_positive_rate=false_positive_rate,
        n=n,
        data=data,
        quantiles=quantiles,
        changes=dict(changes or {}),
    )
