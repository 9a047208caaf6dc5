from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.scaling_model import HIGHEST, Capacity, slowdown
from metastable.errors import MetastableError


def of(alone: list[float], work: list[float]) -> Capacity:
    return Capacity(np.array(alone), np.array(work), ["fast"] * len(alone), np.ones(len(alone), np.int64))


def test_the_slowdown_of_one_replica_is_that_of_processor_sharing() -> None:
    assert slowdown(0.0, 0.0, 1) == 1
    assert slowdown(0.75, 0.75, 1) == pytest.approx(4)
    # Full batches are faster: two rates, by the balance of arrivals and departures.
    lone, full = 0.6, 0.5
    states = [1.0, *(lone * full**k for k in range(200))]
    busy = sum(k * share for k, share in enumerate(states)) / sum(states)
    assert slowdown(lone, full, 1) == pytest.approx(busy / lone)
    assert slowdown(1.1, 1.0, 1) == math.inf


def test_the_slowdown_of_many_is_that_of_two_choices() -> None:
    assert slowdown(0.0, 0.0, 64) == 1
    assert slowdown(0.5, 0.4, 64) == pytest.approx(1 + 0.5**2 + 0.5**6 + 0.5**14)
    assert slowdown(0.9, 0.9, 64) < slowdown(0.9, 0.9, 1)
    assert slowdown(1.0, 0.9, 64) == math.inf


def test_planned_replicas_are_the_least_that_do() -> None:
    found = of([0.1] * 98 + [0.4] * 2, [0.08] * 98 + [0.4] * 2)
    assert found.rate == pytest.approx(1 / (0.98 * 0.08 + 0.02 * 0.4))
    count = found.replicas(100.0, 0.6)
    assert found.latency(0.99, 100.0, count) <= 0.6 < found.latency(0.99, 100.0, count - 1)
    lax = found.replicas(100.0, 60.0)
    assert lax == math.ceil(100.0 * 0.106 / HIGHEST)
    assert found.replicas(1.0, 60.0) == 1
    with pytest.raises(MetastableError, match="with nobody else there"):
        found.replicas(1.0, 0.4)
