import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import arms, plots, sweep
from loadtest.items import Source
from loadtest.schedule import Load
from loadtest.sweep import search
from tests.loadtest.servers import Behaviour, item, serving


def test_the_search_by_hand() -> None:
    tried: list[float] = []

    def meets(rate: float) -> bool:
        tried.append(rate)
        return rate <= 5

    assert search(meets, 1, 100, 6) == pytest.approx(math.sqrt(4 * math.sqrt(32)))
    assert tried == pytest.approx([1, 2, 4, 8, math.sqrt(32), math.sqrt(4 * math.sqrt(32))])


@given(st.floats(0.1, 1000), st.integers(8, 20))
def test_the_search_closes_in_from_below(truth: float, probes: int) -> None:
    found = search(lambda rate: rate <= truth, 1, 512, probes)
    if truth < 1:
        assert found is None
    else:
        assert found is not None
        assert found <= truth
        if probes >= 14:  # at most ten doublings, then the octave is halved
            assert min(truth, 512) / found <= 2 ** (0.5 ** (probes - 11)) * (1 + 1e-9)


def test_the_search_stops_at_its_ceiling_and_after_a_failed_start() -> None:
    tried: list[float] = []
    assert search(lambda rate: tried.append(rate) is None, 1, 3, 9) == 3
    assert tried == [1, 2, 3]
    tried.clear()
    assert search(lambda rate: tried.append(rate) is not None, 1, 3, 9) is None
    assert tried == [1]


@pytest.mark.parametrize("bad", [(0, 1, 1), (2, 1, 1), (1, 2, 0)])
def test_a_search_needs_a_range(bad: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="a search needs"):
        search(lambda rate: True, *bad)


@pytest.mark.slow
def test_a_sweep_finds_what_a_server_of_known_speed_can_do() -> None:
    """20 ms a request are 50 a second: above that, evenly spaced requests pile up."""
    images = [item(1 if i % 2 else 2, 1, row=i) for i in range(30)]
    source = Source("clean", "clean", images, {})
    goal = sweep.LatencyBound("p90", 100.0, 20.0, 160.0, 4)
    load = Load(scenario="constant", timeout=5)
    with serving(Behaviour(service=0.02)) as url:
        chosen = [arms.parse_arm("a", url)]
        found, records = sweep.sweep(chosen, [source], images, load, goal, warmup=0, seed=0)
    (row,) = found.rows
    assert [probe.rate for probe in row.probes][:2] == [20, 40]
    assert row.rate is not None
    assert 20 <= row.rate < 80
    assert any(not probe.met for probe in row.probes)
    assert row.natural is not None
    assert row.natural.value == 0.5
    assert len(records) == 30 * len(row.probes)
    assert plots.png(plots.frontier(sweep.points(found.rows), "rate")).startswith(b"\x89PNG")
