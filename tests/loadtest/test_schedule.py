import numpy as np
import pytest
from scipy import stats

from loadtest import schedule
from metastable.errors import MetastableError


def test_poisson_arrivals_have_exponential_gaps_of_the_stated_rate() -> None:
    due = schedule.poisson(20.0, 4000, seed=1)
    gaps = np.diff(due, prepend=0.0)
    assert (gaps > 0).all()
    assert stats.kstest(gaps * 20.0, "expon").pvalue > 0.01
    assert (schedule.poisson(20.0, 4000, seed=1) == due).all()
    assert not (schedule.poisson(20.0, 4000, seed=2) == due).any()


def test_a_constant_rate_is_evenly_spaced() -> None:
    assert schedule.constant(4.0, 5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("utilisation", [0.3, 0.7])
def test_an_m_d_1_queue_waits_as_theory_says(utilisation: float) -> None:
    """Pollaczek and Khinchine: the mean wait is rho S / (2 (1 - rho)) for a constant service time S."""
    service = 0.1
    due = schedule.poisson(utilisation / service, 200_000, seed=3)
    waits, free = np.empty(len(due)), 0.0
    for i, at in enumerate(due):
        waits[i] = max(0.0, free - at)
        free = max(free, at) + service
    assert waits.mean() == pytest.approx(utilisation * service / (2 * (1 - utilisation)), rel=0.05)
    assert (waits == 0).mean() == pytest.approx(1 - utilisation, abs=0.01)  # PASTA


def test_a_load_is_bounded_in_count_and_time() -> None:
    load = schedule.Load(scenario="constant", rate=10, seconds=0.35)
    due = load.due(100, seed=0)
    assert due is not None
    assert due.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    due = load.due(2, seed=0)
    assert due is not None
    assert len(due) == 2


def test_closed_loops_have_no_schedule_but_a_number_under_way() -> None:
    assert schedule.Load(scenario="closed", concurrency=3).due(5, 0) is None
    assert schedule.Load(scenario="closed", concurrency=3).at_once == 3
    assert schedule.Load(scenario="single", concurrency=3).at_once == 1
    assert schedule.Load(scenario="offline", concurrency=3).at_once == schedule.OFFLINE_AT_ONCE


@pytest.mark.parametrize("field", ["rate", "concurrency", "seconds", "timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_values_that_make_no_sense_are_named(field: str, value: float) -> None:
    with pytest.raises(MetastableError, match=field):
        schedule.Load(**{field: value})  # type: ignore[arg-type]
