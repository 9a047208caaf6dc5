"""Certified l_2 radius by randomized smoothing (Cohen, Rosenfeld and Kolter 2019; ADP, section 5.1.3).

A defense that adds N(0, sigma^2 I) to the image and then does something deterministic is a smoothed
classifier: where its most likely label has a probability above p > 1/2, no perturbation of l_2 length below
sigma Phi^-1(p) changes that label.  Eq. 19 of ADP has this with the runner-up's probability, which is at
most 1 - p.  What is certified is the majority vote over infinitely many chains, not the served answer,
which averages a few of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from metastable.defense import CHAINS_AT_ONCE, Classifier, purify, viewed
from metastable.dynamics import ScoreFunction
from metastable.errors import SettingsError
from metastable.pixels import CPU_PIXELS, at_most, most_pixels
from metastable.settings import Setting

BATCHES = 4
"""Of chains in a span: seconds of work, beside which handing it to another process costs little."""


@dataclass(frozen=True)
class Certificate:
    """What is certain of one image, but for a chance of alpha.

    Attributes:
        label: the most likely label; None where no label is certain to have more than half.
        radius: no perturbation of l_2 length below it, in [0, 1] units, changes the label.
        lower: lower bound of that label's probability.
    """

    label: int | None
    radius: float
    lower: float


def lower_bound(hits: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: the share is at least this with probability 1 - alpha.

    Raises ValueError for hits outside 0..n, n below 1 or alpha outside (0, 1).
    """
    if not 0 <= hits <= n or n < 1 or not 0 < alpha < 1:
        raise ValueError(f"no bound for {hits} of {n} at alpha {alpha}")
    return 0.0 if hits == 0 else float(stats.beta.ppf(alpha, hits, n - hits + 1))


def certificate(chosen: Tensor, counts: Tensor, *, sigma: float, alpha: float) -> Certificate:
    """CERTIFY of Cohen et al.: the label by one sample of votes, its probability by another.

    Args:
        chosen: votes by label, int64 [classes], that choose the label.
        counts: votes of other chains, that bound its probability.
    """
    label = int(chosen.argmax())
    lower = lower_bound(int(counts[label]), int(counts.sum()), alpha)
    if lower <= 0.5:
        return Certificate(None, 0.0, lower)
    return Certificate(label, sigma * float(stats.norm.ppf(lower)), lower)


def smoothing_noise(setting: Setting) -> float:
    """The sigma of a setting that is a smoothed classifier; SettingsError for one that is not."""
    sigma = setting.dynamics.smoothing
    if not sigma:
        raise SettingsError(
            f"setting {setting.name!r} cannot be certified: that needs dynamics adp or noise, and sigma > 0"
        )
    if setting.dynamics.asks_the_flag:
        raise SettingsError(
            f"setting {setting.name!r} cannot be certified: its noise depends on the anomaly flag, and so on "
            "the image; leave sigma_unflagged out"
        )
    return sigma


@torch.inference_mode()
def votes(
    image: Tensor,
    setting: Setting,
    *,
    classifier: Classifier,
    score: ScoreFunction,
    seed: int,
    first: int,
    n: int,
) -> Tensor:
    """How many of chains `first` to `first + n` of a setting give each label, int64 [classes].

    The image is [C, H, W] in [0, 1]; one run of a chain is one draw of the smoothing noise.  Where a setting
    mirrors every second chain, votes are of two kinds, as many of one as of the other: binomial bounds
    of their mean probability hold for them too (Hoeffding 1956).
    """
    counts = torch.zeros(0, dtype=torch.int64)
    at_once = at_most(CHAINS_AT_ONCE, image.shape, most_pixels(image.device))
    for start in range(first, first + n, at_once):
        keys = [(seed, chain) for chain in range(start, min(start + at_once, first + n))]
        flagged = torch.ones(len(keys), dtype=torch.bool)
        x, _ = purify(image.expand(len(keys), *image.shape), keys, setting, score, flagged)
        logits = classifier(viewed(x, [chain for _, chain in keys], setting))
        found = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        counts = found if not len(counts) else counts + found
    return counts


class Span(NamedTuple):
    """Chains `first` to `first + n` of an image; whether they choose the label, or bound its probability."""

    chooses: bool
    first: int
    n: int


def spans(choose: int, n: int, shape: tuple[int, ...]) -> list[Span]:
    """The chains of a certificate in pieces that `votes` may count apart, of an image [C, H, W] on the CPU.

    Their batches are those of the whole: `choose` chains, and after them `n`.
    """
    size = BATCHES * at_most(CHAINS_AT_ONCE, shape, CPU_PIXELS)
    return [
        Span(chooses, start, min(size, first + count - start))
        for chooses, first, count in ((True, 0, choose), (False, choose, n))
        for start in range(first, first + count, size)
    ]


def merged(counted: Mapping[Span, Tensor], *, sigma: float, alpha: float) -> Certificate:
    """The certificate of an image by the votes of all its spans (`certificate`)."""
    chosen, counts = (
        torch.stack([votes for span, votes in counted.items() if span.chooses == wanted]).sum(0)
        for wanted in (True, False)
    )
    return certificate(chosen, counts, sigma=sigma, alpha=alpha)


def certify(
    image: Tensor,
    setting: Setting,
    *,
    classifier: Classifier,
    score: ScoreFunction,
    seed: int,
    choose: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
) -> Certificate:
    """The certificate of one image [C, H, W] in [0, 1] by `choose` and then `n` chains.

    Raises SettingsError for a setting that is no smoothed classifier.
    """
    sigma = smoothing_noise(setting)
    counted = {
        span: votes(image, setting, classifier=classifier, score=score, seed=seed, first=span.first, n=span.n)
        for span in spans(choose, n, tuple(image.shape))
    }
    return merged(counted, sigma=sigma, alpha=alpha)
