"""The promise of the policy, in a simulation on the engine's own clock."""

import pytest

from metastable.engine.engine import EngineLimits
from metastable.engine.job import Answer, Job
from metastable.settings import Setting
from tests.engine.worlds import LONG, SHORT, job, run_out, world

SEGMENT = 0.03
MEDIUM = Setting.of("medium", "langevin", network="energy", chains=4, steps=20, tau=0.1)


def latencies(long_jobs: int, short_jobs: int, gap: float) -> tuple[list[float], list[float]]:
    """Seconds from submission to outcome of long jobs that are there first, and of short ones every `gap`."""
    engine, _, clock = world(EngineLimits(segment=SEGMENT, backlog=1e9, jobs=10_000))
    arrived: dict[str, float] = {}
    ended: dict[str, float] = {}

    def submit(one: Job) -> None:
        arrived[one.id] = clock.now
        engine.submit(one)

    for i in range(long_jobs):
        submit(job(f"long{i}", LONG, seed=i))
    due = [1.0 + k * gap for k in range(short_jobs)]  # by then the long ones have had some service
    while due or engine.held:
        while due and due[0] <= clock.now:
            submit(job(f"short{len(due)}", SHORT, seed=len(due)))
            due.pop(0)
        if not engine.advance():
            clock.now = due[0]
        for outcome in engine.collect():
            assert isinstance(outcome, Answer)
            ended[outcome.job.id] = clock.now
    spent = {id: ended[id] - arrived[id] for id in arrived}
    return (
        [seconds for id, seconds in spent.items() if id.startswith("long")],
        [seconds for id, seconds in spent.items() if id.startswith("short")],
    )


@pytest.mark.slow
def test_short_requests_do_not_wait_for_long_ones() -> None:
    _, alone = latencies(0, 50, gap=0.05)
    _, beside = latencies(5, 50, gap=0.05)
    # The segment that runs when it comes, its own work, and the oldest request's share of segments.
    assert max(beside) <= max(alone) + 3 * 2 * SEGMENT


@pytest.mark.slow
def test_a_long_request_gets_its_share_however_many_short_ones_come() -> None:
    # Short ones alone would fill the machine: 4 chains of 2 ms + 2 ms every 16 ms.
    [[alone], _] = latencies(1, 0, gap=1.0)
    [[long], _] = latencies(1, 500, gap=0.016)
    # A quarter of the time, less what others that ride along in its segments take of it.
    assert long <= 4.5 * alone


def test_equal_requests_end_one_after_the_other() -> None:
    engine, _, clock = world(EngineLimits(backlog=1e9))
    ended: dict[str, float] = {}
    for i in range(20):
        engine.submit(job(f"r{i}", MEDIUM, seed=i))
    while engine.advance():
        ended |= {outcome.job.id: clock.now for outcome in engine.collect()}
    assert list(ended) == [f"r{i}" for i in range(20)]
    # The first has waited for its own work, and not for that of all.
    assert ended["r0"] <= 0.15 * ended["r19"]


def test_a_request_that_needs_more_than_expected_does_not_keep_the_machine() -> None:
    engine, *_ = world(EngineLimits(backlog=1e9))
    permit = engine.admit(LONG)
    permit.line.price = 0.01  # far too low
    engine.submit(job("wrong", LONG), permit)
    for i in range(3):
        engine.submit(job(f"right{i}", MEDIUM, seed=i))
    run_out(engine)
    assert [outcome.job.id for outcome in engine.collect()][-1] == "wrong"


def test_requests_of_one_kind_all_end() -> None:
    engine, *_ = world()
    for i in range(3):
        engine.submit(job(f"r{i}", LONG.moving(steps=5), seed=i))
    order = []
    while engine.held:
        engine.advance()
        order += [outcome.job.id for outcome in engine.collect()]
    run_out(engine)
    assert sorted(order) == ["r0", "r1", "r2"]
