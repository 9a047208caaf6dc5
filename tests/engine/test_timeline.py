"""When things were done for a job: what the engine notes, and how little of it is kept."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from metastable.engine.job import Answer, Failure
from metastable.engine.timeline import MOST, Part, Timeline
from tests.engine.worlds import LONG, job, run_out, world


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9), st.integers(1, 9)), max_size=300))
def test_it_is_bounded_and_loses_no_time_and_no_step(given: list[tuple[float, int, int]]) -> None:
    timeline, now = Timeline(), 0.0
    for spent, chains, steps in given:
        timeline.add("purify", now, now + spent, chains=chains, steps=steps)
        now += spent
    parts = timeline.parts()
    assert len(parts) <= MOST
    assert sum(part.batches for part in parts) == len(given)
    assert sum(part.steps for part in parts) == sum(steps for _, _, steps in given)
    assert max((part.chains for part in parts), default=0) == max((c for _, c, _ in given), default=0)
    if parts:
        assert (parts[0].began, parts[-1].ended) == (0.0, now)
    assert all(first.ended <= second.began for first, second in itertools.pairwise(parts))


def test_parts_of_other_stages_stay_what_they_are() -> None:
    timeline = Timeline()
    timeline.add("classify", 5.0, 6.0, chains=2)
    for i in range(MOST + 1):
        timeline.add("purify", float(i), i + 0.5)
    assert Part("classify", 5.0, 6.0, 2) in timeline.parts()
    assert [part.began for part in timeline.parts()] == sorted(part.began for part in timeline.parts())


def test_the_engine_notes_each_stage() -> None:
    engine, _, clock = world()
    clock.now = 3.0
    for one in (job("one", timeline=Timeline()), job("other", LONG, timeline=Timeline())):
        engine.submit(one)
    run_out(engine)
    ended = engine.collect()
    assert len(ended) == 2
    for outcome in ended:
        assert isinstance(outcome, Answer)
        parts, setting = outcome.job.timeline.parts(), outcome.job.setting  # type: ignore[union-attr]
        assert {part.stage for part in parts} == {"queue", "purify", "classify", "decide"}
        assert parts[0][:3] == ("queue", 3.0, 3.0 + outcome.seconds["queue"])
        walks = [part for part in parts if part.stage == "purify"]
        assert sum(part.steps for part in walks) >= setting.dynamics.steps
        assert 1 <= max(part.chains for part in walks) <= setting.most_chains
        # Its share of the batches is never more than the time that these took.
        assert 0 < outcome.seconds["purify"] <= sum(part.ended - part.began for part in walks) + 1e-9
        assert sum(p.chains * p.batches for p in parts if p.stage == "classify") >= setting.most_chains
        assert parts[-1].stage == "decide"


def test_a_job_that_fails_has_its_parts_too() -> None:
    engine, _, clock = world()
    late = job("late", LONG, deadline=clock.now + 0.02, timeline=Timeline())
    engine.submit(late)
    run_out(engine)
    [ended] = engine.collect()
    assert isinstance(ended, Failure)
    assert late.timeline is not None
    assert {part.stage for part in late.timeline.parts()} == {"queue", "purify"}


def test_nothing_is_noted_for_a_job_without_one() -> None:
    engine, _, _ = world()
    engine.submit(job("quiet"))
    run_out(engine)
    [ended] = engine.collect()
    assert isinstance(ended, Answer)
    assert ended.job.timeline is None
