import numpy as np
import pytest

from metastable.evaluation.stats import auroc, wilson


def test_wilson_by_the_published_formula() -> None:
    p, n, z = 0.9, 50, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson(45, 50) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    with pytest.raises(ValueError, match="k"):
        wilson(3, 2)


def test_auroc_counts_pairs() -> None:
    negatives, positives = [1.0, 2.0, 3.0], [2.0, 4.0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert auroc(negatives, positives) == pytest.approx(sum(pairs) / 6)
