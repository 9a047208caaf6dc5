"""The cost curve: measured within a budget, small batches first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metastable.engine import assembly, costs
from metastable.engine.admission import Admission
from metastable.engine.costs import CLASSIFY, LOOK, Costs
from metastable.engine.runners import Abilities
from metastable.pixels import CPU_PIXELS, GPU_PIXELS, at_most
from tests.engine.worlds import ADP, KINDS, LONG, NONE, SHAPE, STEP, Clock, Walk
from tests.engine.worlds import LOOK as CLASSIFICATION

SIZES = (1, 2, 4, 8, 16)
ALL = 3 * sum(SIZES) * (2 * STEP + CLASSIFICATION)
"""Seconds of a Walk's whole measurement: a run to warm up and two timings of everything at every size."""


def sizes_run(runner: Walk) -> list[int]:
    return sorted({size for _, size, _ in runner.batches})


def test_with_time_enough_every_size_is_measured() -> None:
    clock = Clock()
    runner = Walk(clock)
    found = costs.measure(runner, KINDS, SHAPE, SIZES, clock, budget=2 * ALL)
    assert clock.now == pytest.approx(ALL)
    assert sizes_run(runner) == list(SIZES)
    assert found.seconds(KINDS[0], 16) == pytest.approx(16 * STEP)
    assert found.seconds(CLASSIFY, 3) == pytest.approx(3 * CLASSIFICATION)


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.05, 0.1, 0.15])
def test_sizes_that_do_not_fit_cost_as_much_an_image_as_the_largest_that_did(budget: float) -> None:
    clock = Clock()
    runner = Walk(clock)
    found = costs.measure(runner, KINDS, SHAPE, SIZES, clock, budget=budget)
    least = 2 * (2 * STEP + CLASSIFICATION)  # two runs of each are the least that there can be
    assert clock.now <= budget + least
    assert sizes_run(runner)[0] == 1
    assert sizes_run(runner)[-1] < 16
    for size in SIZES:
        assert found.seconds(KINDS[1], size) == pytest.approx(size * STEP)
        assert found.seconds(CLASSIFY, size) == pytest.approx(size * CLASSIFICATION)
    assert found.width(KINDS[0], 0.03) == 8  # as of a curve that is measured


class Slow(Walk):
    """Takes a second longer at the first run of each size, as if it compiled a graph."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.seen: set[object] = set()

    def advance(self, kind, batch, steps):  # type: ignore[no-untyped-def]
        if (key := (kind, len(batch.keys))) not in self.seen:
            self.seen.add(key)
            self.clock.now += 1.0
        return super().advance(kind, batch, steps)


def test_what_is_compiled_first_counts_for_the_budget_and_not_as_a_cost() -> None:
    clock = Clock()
    runner = Slow(clock)
    found = costs.measure(runner, KINDS[:1], SHAPE, SIZES, clock, budget=2.5)
    assert sizes_run(runner) == [1, 2]
    assert clock.now <= 2.5
    assert found.seconds(KINDS[0], 16) == pytest.approx(16 * STEP)


def test_work_that_is_dear_is_timed_once() -> None:
    clock = Clock()
    runner = Walk(clock)
    costs.measure(runner, KINDS[:1], SHAPE, (1, 200), clock, repeats=3)
    assert [size for _, size, _ in runner.batches] == [1] * 4 + [200] * 2


def test_a_look_at_an_image_has_a_cost_and_counts_in_every_price() -> None:
    clock = Clock()

    def look(x: Tensor) -> None:
        clock.now += 0.5 * len(x)

    found = costs.measure(Walk(clock), KINDS, SHAPE, (1, 2), clock, look=look)
    assert found.unit(LOOK) == pytest.approx(0.5)
    without = Costs({w: {1: found.seconds(w, 1)} for w in (*KINDS, CLASSIFY)})
    for setting in (NONE, ADP, LONG):
        one, other = (Admission(c, backlog=1, jobs=1).price(setting) for c in (found, without))
        assert one - other == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("shape", "device", "measured"),
    [
        ((3, 32, 32), "cpu", [1, 2, 4, 8, 16]),
        ((3, 48, 64), "cpu", [1, 2, 4, 8, 16]),
        ((3, 224, 224), "cpu", [1, 2, 4]),
        ((1, 2048, 1024), "cpu", [1]),
        ((3, 224, 224), "meta", [1, 2, 4, 8, 16, 32]),
    ],
)
def test_batches_of_large_images_are_small(
    shape: tuple[int, int, int], device: str, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    runner = Walk(clock)
    sizes = () if device == "cpu" else (1, 2, 4, 8, 16, 32, 64, 2048)
    runner.abilities = Abilities(exact=True, device=torch.device(device), sizes=sizes)  # type: ignore[misc]
    asked: list[object] = []
    monkeypatch.setattr(costs, "measure", lambda *args, **named: asked.append((args[3], named["budget"])))
    assembly.measured(runner, [ADP], shape)
    budget = assembly.BUDGET if device == "cpu" else assembly.GPU_BUDGET
    assert asked == [(measured, budget)]


def test_a_batch_has_at_least_one_image() -> None:
    assert at_most(64, (3, 32, 32), CPU_PIXELS) == 64
    assert at_most(64, (7, 3, 224, 224), CPU_PIXELS) == 5
    assert at_most(64, (3, 4000, 4000), CPU_PIXELS) == 1
    assert at_most(2048, (3, 32, 32), GPU_PIXELS) == 2048
