"""Intervals and areas, by SciPy."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest, mannwhitneyu


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.  Raises ValueError for n < 1 or successes > n."""
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def auroc(negatives: Sequence[float], positives: Sequence[float]) -> float:
    """Chance that a positive's score exceeds a negative's, ties counted half."""
    u = mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return float(u) / (len(negatives) * len(positives))
