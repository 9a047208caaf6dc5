import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loadtest import statistics


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_known_numbers_of_samples(q: float, n: int) -> None:
    """Wilks 1941: n observations bound a quantile if q^n <= 0.025."""
    assert statistics.samples_needed(q) == n
    enough, few = (statistics.quantile(np.arange(float(m)), q) for m in (n, n - 1))
    assert enough.high is not None
    assert enough.low is not None
    assert few.high is None


def test_the_known_interval_of_a_median() -> None:
    """Tables of the sign test: of 20 observations, the 6th and 15th bound the median (95.9 %)."""
    found = statistics.quantile(np.arange(1.0, 21.0), 0.5)
    assert (found.value, found.low, found.high) == (10.0, 6.0, 15.0)


def test_the_value_is_an_order_statistic_even_where_floats_are_inexact() -> None:
    assert statistics.quantile(np.arange(1.0, 101.0), 0.99).value == 99.0
    assert statistics.quantile(np.arange(1.0, 11.0), 0.7).value == 7.0
    assert statistics.quantile([5.0], 0.99).value == 5.0
    assert math.isnan(statistics.quantile([], 0.5).value)


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_bounds_cover_the_true_quantile_as_often_as_they_say(q: float) -> None:
    rng, hits, runs = np.random.default_rng(0), 0, 1000
    truth = stats.expon.ppf(q)
    for _ in range(runs):
        found = statistics.quantile(rng.exponential(size=100), q)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert stats.binomtest(hits, runs, 0.95, alternative="less").pvalue > 0.001
    assert hits < runs


def test_a_request_without_an_answer_is_infinitely_late() -> None:
    values = [1.0] * 90 + [math.inf] * 10
    assert statistics.quantile(values, 0.9).value == 1.0
    assert statistics.quantile(values, 0.95).value == math.inf


def test_mcnemar_by_hand() -> None:
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(0, 5) == pytest.approx(2 / 32)
    assert statistics.mcnemar(1, 5) == pytest.approx(2 * 7 / 64)
    assert statistics.mcnemar(3, 3) == 1.0


def test_fisher_on_the_lady_tasting_tea() -> None:
    assert statistics.fisher((3, 1), (4, 4)) == pytest.approx(34 / 70)


@given(st.integers(1, 200), st.integers(0, 9))
def test_resampling_draws_runs_of_neighbours(n: int, seed: int) -> None:
    rows = statistics.resampled(n, 7, seed)
    assert rows.shape == (7, n)
    assert ((rows >= 0) & (rows < n)).all()
    block = round(n ** (1 / 3))
    if block >= 2:
        assert (np.diff(rows[:, :block], axis=1) % n == 1).all()


def test_a_real_difference_is_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    first = rng.exponential(100, 400)
    again = statistics.quantile_difference(first, rng.permutation(first), 0.9, paired=False)
    assert again.value == 0
    assert again.is_noise
    slower = statistics.quantile_difference(first, first + 30, 0.9, paired=True)
    assert (slower.value, slower.low, slower.high) == pytest.approx((30, 30, 30))
    assert not slower.is_noise


def test_the_bootstrap_of_a_median_agrees_with_its_large_sample_error() -> None:
    """The median of n normals has the standard error sqrt(pi / 2 n)."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=900), rng.normal(size=900)
    found = statistics.quantile_difference(first, second, 0.5, paired=False)
    assert found.low is not None
    assert found.high is not None
    width = 2 * 1.96 * math.sqrt(2 * math.pi / 2 / 900)
    assert found.high - found.low == pytest.approx(width, rel=0.3)


def test_a_difference_that_hangs_on_unanswered_requests_is_not_known() -> None:
    late = np.array([1.0] * 50 + [math.inf] * 50)
    assert statistics.quantile_difference(late, np.ones(100), 0.9, paired=True).value is None
    assert statistics.quantile_difference(np.empty(0), np.ones(3), 0.9, paired=False).is_noise


def test_roc_by_hand() -> None:
    false, true = statistics.roc([1.0, 2.0], [2.0, 3.0])
    assert false.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert true.tolist() == [0.0, 0.5, 1.0, 1.0]
