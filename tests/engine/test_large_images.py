"""Images of which one chain's step takes longer than a segment, and whose states are large."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import torch

from metastable.engine.admission import Admission
from metastable.engine.costs import CLASSIFY, Costs
from metastable.engine.engine import Engine, EngineLimits
from metastable.engine.job import Answer, Failure, Job
from metastable.errors import DeadlineExceeded, Overloaded
from metastable.settings import Setting
from tests.engine.worlds import ADP, KINDS, LOOK, SHAPE, SHORT, STEP, Clock, Walk, job, run_out, world

SLOW = 300  # times as long as a Walk's step: 0.3 s, ten segments
PHOTO = (3, 224, 224)


class SlowWalk(Walk):
    def advance(self, kind, batch, steps):  # type: ignore[no-untyped-def]
        self.clock.now += (SLOW - 1) * STEP * len(batch.keys) * steps
        return super().advance(kind, batch, steps)


def slow_world(limits: EngineLimits | None = None) -> tuple[Engine, SlowWalk, Clock]:
    clock = Clock()
    runner = SlowWalk(clock)
    curves = {kind: {n: SLOW * STEP * n for n in (1, 2, 4)} for kind in KINDS}
    costs = Costs({**curves, CLASSIFY: {n: LOOK * n for n in (1, 2, 4)}})
    return Engine(runner, costs, SHAPE, clock, limits), runner, clock


def answers(engine: Engine) -> dict[str, Answer | Failure]:
    return {outcome.job.id: outcome for outcome in engine.collect()}


def test_a_step_that_is_longer_than_a_segment_is_of_one_chain_and_one_step() -> None:
    engine, runner, _ = slow_world()
    engine.submit(job("a"))
    run_out(engine)
    assert isinstance(answers(engine)["a"], Answer)
    assert {(size, steps) for _, size, steps in runner.batches} == {(1, 1)}


def test_deadlines_and_draining_are_met_between_two_steps() -> None:
    engine, _, clock = slow_world(EngineLimits(backlog=100.0))
    engine.submit(job("late", deadline=1.0))
    engine.submit(job("partial", replace(SHORT, chains=60), deadline=9.0))
    ended: dict[str, float] = {}
    engine.drain(20.0)
    engine_step = SLOW * STEP + LOOK
    while engine.held:
        engine.advance()
        ended |= dict.fromkeys(answers(engine), clock.now)
    assert ended["late"] <= 1.0 + 2 * engine_step
    assert 9.0 <= ended["partial"] <= 9.0 + 2 * engine_step
    stopped, _, clock = slow_world()
    stopped.submit(job("stopped", replace(SHORT, chains=60)))
    stopped.drain(5.0)
    run_out(stopped)
    assert 5.0 <= clock.now <= 5.0 + engine_step


def test_a_cheap_request_does_not_wait_for_a_dear_one() -> None:
    engine, _, clock = slow_world(EngineLimits(backlog=1000.0))
    engine.submit(job("dear", replace(SHORT, chains=200)))
    engine.advance()
    begun = clock.now
    cheap = replace(SHORT, name="cheap", chains=1)
    engine.submit(job("cheap", cheap))
    work = cheap.steps * SLOW * STEP + LOOK
    while "cheap" not in answers(engine):
        engine.advance()
    # Its own steps, and the oldest request's quarter, which may come before and between them.
    assert clock.now - begun <= work + 3 * SLOW * STEP


def test_a_dear_request_is_refused_with_the_time_that_its_steps_take() -> None:
    engine, _, clock = slow_world(EngineLimits(backlog=1.0, few=1))
    price = 4 * (2 * SLOW * STEP + LOOK)  # 2.4 s
    engine.submit(job("first"))
    with pytest.raises(Overloaded) as refused:
        engine.submit(job("second"))
    assert refused.value.retry_after == pytest.approx(price - 1.0)
    until = clock.now + refused.value.retry_after
    while clock.now < until:
        engine.advance()
    engine.submit(job("second"))


def test_fewer_chains_of_large_images_are_under_way() -> None:
    limits = EngineLimits()
    assert limits.slots_of((3, 32, 32)) == limits.slots
    assert limits.slots_of(PHOTO) * math.prod(PHOTO) * 4 <= limits.state_bytes
    assert limits.slots_of(PHOTO) > 400
    assert EngineLimits(state_bytes=1).slots_of(PHOTO) == 1
    size = math.prod(SHAPE) * 4
    few, runner, _ = world(EngineLimits(state_bytes=3 * size))
    for i in range(3):
        few.submit(job(f"r{i}", seed=i))
    run_out(few)
    assert max(n for _, n, _ in runner.batches) <= 3
    assert len(few.collect()) == 3


@pytest.mark.parametrize("setting", [SHORT, ADP, replace(SHORT, name="early", chains=200, delta=1e-9)])
def test_states_of_finished_chains_are_added_up_as_they_come(setting: Setting) -> None:
    """However many chains a request has, it keeps the states of a few; their mean is that of all."""
    setting = replace(setting, chains=200)
    engine, _, _ = world()
    engine.submit(job("a", setting, value=0.0))
    active = engine._held["a"]
    ends: list[torch.Tensor] = []
    alive: list[int] = []
    finish = active.finish

    def noted(chain, end):  # type: ignore[no-untyped-def]
        ends.append(end.state.clone())
        references.append(weakref.ref(end.state))
        finish(chain, end)
        alive.append(sum(one.state is not None for one in active.finished.values()))

    references: list[weakref.ref[torch.Tensor]] = []
    active.finish = noted  # type: ignore[method-assign]
    run_out(engine)
    [answer] = engine.collect()
    assert isinstance(answer, Answer)
    count = answer.result.outputs.shape[1]
    assert count == len(ends) == 200
    torch.testing.assert_close(answer.result.purified[0], torch.stack(ends).mean(0))
    assert answer.result.purified.dtype == torch.float32
    assert max(alive) < 200
    if setting.delta is None:
        assert max(alive) <= 16


def test_a_late_answer_is_the_mean_of_the_chains_that_there_are() -> None:
    engine, _, _ = slow_world()
    engine.submit(job("late", replace(SHORT, chains=60), deadline=20.0))
    active = engine._held["late"]
    ends: list[torch.Tensor] = []
    finish = active.finish

    def noted(chain, end):  # type: ignore[no-untyped-def]
        ends.append(end.state.clone())
        finish(chain, end)

    active.finish = noted  # type: ignore[method-assign]
    run_out(engine)
    [late] = engine.collect()
    assert isinstance(late, Answer)
    assert late.late
    assert len(ends) > 20
    torch.testing.assert_close(late.result.purified[0], torch.stack(ends).mean(0))


def test_a_look_is_part_of_a_price() -> None:
    curves = {kind: {1: STEP} for kind in KINDS} | {CLASSIFY: {1: LOOK}}
    bare, whole = Costs(curves), Costs({**curves, "look": {1: 0.25}})
    for setting in (SHORT, ADP, Setting.of("none", "none")):
        prices = [Admission(costs, backlog=1, jobs=1).price(setting) for costs in (bare, whole)]
        assert prices[1] - prices[0] == pytest.approx(0.25)


def test_a_deadline_that_nothing_can_meet_fails_alone() -> None:
    engine, _, _ = slow_world()
    engine.submit(job("hopeless", deadline=1e-3))
    engine.submit(Job("fine", torch.ones(SHAPE), SHORT, 1))
    run_out(engine)
    found = answers(engine)
    assert isinstance(found["fine"], Answer)
    hopeless = found["hopeless"]
    assert isinstance(hopeless, Failure)
    assert isinstance(hopeless.error, DeadlineExceeded)
