"""What can be said of latencies and answers, and how surely.  Pure functions.

Latencies are milliseconds; a request that got no answer counts as infinitely late, so that a server
that drops its slow requests does not look fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, fisher_exact

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Quantile:
    """An empirical quantile with distribution-free confidence bounds.

    Attributes:
        value: the smallest observation with at least the share q of all at or below it; inf where that
            is a request without an answer, nan of no observations.
        low, high: bounds; None where there are too few observations for one.
        needed: observations that both bounds need.
    """

    value: float
    low: float | None
    high: float | None
    needed: int


def samples_needed(q: float, confidence: float = 0.95) -> int:
    """The least n for which the q-quantile has a lower and an upper bound.

    The largest of n observations lies above it with chance 1 - q^n, the smallest below it with
    chance 1 - (1 - q)^n; each may fail with half of 1 - confidence.  Raises ValueError for q or
    confidence outside (0, 1).
    """
    if not (0 < q < 1 and 0 < confidence < 1):
        raise ValueError(f"q and confidence must be in (0, 1), not {q} and {confidence}")
    return max(1, math.ceil(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q))))


def quantile(values: Sequence[float] | Values, q: float, confidence: float = 0.95) -> Quantile:
    """The q-quantile and order statistics that bound it (David and Nagaraja 2003, section 7.1).

    The number of observations at or below the true quantile is binomial(n, q), whatever their
    distribution, so the l-th smallest exceeds it with chance P(B <= l - 1), and the u-th smallest
    falls short of it with chance P(B >= u).  Observations are taken for independent.
    """
    needed, ordered = samples_needed(q, confidence), np.sort(np.asarray(values, np.float64))
    n, tail = len(ordered), (1 - confidence) / 2
    if n == 0:
        return Quantile(math.nan, None, None, needed)
    value = float(ordered[max(0, math.ceil(round(q * n, 9)) - 1)])
    counts = np.arange(n + 1)
    below = binom.cdf(counts - 1, n, q) <= tail  # l = 0..n: P(B <= l - 1)
    above = binom.sf(counts - 1, n, q) <= tail  # u = 0..n: P(B >= u)
    lower = int(counts[below].max())  # l = 0 always qualifies and means: no bound
    low = float(ordered[lower - 1]) if lower else None
    high = float(ordered[int(counts[above].min()) - 1]) if above.any() else None
    return Quantile(value, low, high, needed)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two arms are right equally often on the same images (McNemar 1947).

    Args:
        only_first, only_second: images that one arm alone got right.  Those on which both agree say
            nothing.
    """
    n = only_first + only_second
    return float(binomtest(only_first, n, 0.5).pvalue) if n else 1.0


def fisher(right: tuple[int, int], n: tuple[int, int]) -> float:
    """Exact two-sided p-value that two arms are right equally often, on different images."""
    table = [[right[0], n[0] - right[0]], [right[1], n[1] - right[1]]]
    return float(fisher_exact(table).pvalue)


def resampled(n: int, times: int, seed: int) -> NDArray[np.int64]:
    """Indices [times, n] of a circular block bootstrap (Politis and Romano 1992), blocks of n^(1/3).

    Neighbouring requests wait in the same queue, so their latencies are alike: whole runs of
    neighbours are drawn.
    """
    block = max(1, round(n ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, n, (times, math.ceil(n / block)))
    return ((starts[:, :, None] + np.arange(block)) % n).reshape(times, -1)[:, :n]


@dataclass(frozen=True)
class Difference:
    """Second minus first, with a bootstrap interval; None where unanswered requests decide it."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds zero, or nothing is known."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def quantile_difference(
    first: Values,
    second: Values,
    q: float,
    *,
    paired: bool,
    confidence: float = 0.95,
    times: int = 2000,
    seed: int = 0,
) -> Difference:
    """How far the q-quantile of `second` lies above that of `first`: percentile bootstrap (Efron 1979).

    Args:
        paired: values of equal place met the same image and arrival, and are drawn together.
    """
    if not len(first) or not len(second):
        return Difference(None, None, None)
    rows = resampled(len(first), times, seed)
    others = rows if paired else resampled(len(second), times, seed + 1)

    def take(values: Values) -> Values:
        # Of order statistics, not between them: half way to an unanswered request is no number.
        return np.asarray(np.quantile(values, q, axis=-1, method="inverted_cdf"))

    point, ends = (take(first), take(second)), (take(first[rows]), take(second[others]))
    if not all(np.isfinite(v).all() for v in (*point, *ends)):
        return Difference(None, None, None)
    low, high = np.quantile(ends[1] - ends[0], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(point[1] - point[0]), float(low), float(high))


def roc(negatives: Sequence[float], positives: Sequence[float]) -> tuple[Values, Values]:
    """False and true positive rates of every threshold, from (0, 0) to (1, 1); flagged is >= it."""
    marks = np.unique(np.concatenate([negatives, positives]))[::-1]
    rates = [
        np.concatenate([[0.0], (np.asarray(scores)[None] >= marks[:, None]).mean(axis=1)])
        for scores in (negatives, positives)
    ]
    return rates[0], rates[1]
