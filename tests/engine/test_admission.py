"""Permits: taken before anything is paid, and given back whatever happens."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest

from metastable.engine.admission import Permit
from metastable.engine.driver import Driver
from metastable.engine.engine import Engine, EngineLimits
from metastable.errors import DeadlineExceeded, Draining, EngineFailure, Overloaded
from metastable.settings import Setting
from tests.engine.worlds import ADP, LONG, NONE, SETTINGS, SHORT, job, run_out, world

PRICE = 1.32  # seconds of LONG: 60 * (20 * 1 ms + 2 ms)
WAIT = 60.0


def nothing_is_out(engine: Engine) -> bool:
    return engine.admission.out == engine.backlog == engine.held == 0


def test_a_permit_counts_before_anything_is_submitted() -> None:
    engine, *_ = world(EngineLimits(backlog=1.0, few=1))
    permit = engine.admit(LONG)
    assert engine.backlog == permit.price == pytest.approx(PRICE)
    with pytest.raises(
        Overloaded, match=r"1\.3 s of work to do before yours, and 1\.3 s in all: try again in 0\.3 s"
    ):
        engine.admit(LONG)
    engine.admit(SHORT).release()
    permit.release()
    permit.release()
    assert nothing_is_out(engine)
    assert engine.admit(LONG).price == permit.price


def test_as_many_permits_are_out_as_jobs_may_be_held() -> None:
    engine, *_ = world(EngineLimits(jobs=2))
    permits = [engine.admit(NONE) for _ in range(2)]
    with pytest.raises(Overloaded):
        engine.admit(NONE)
    permits[0].release()
    engine.submit(job("a", NONE), engine.admit(NONE))
    with pytest.raises(Overloaded):
        engine.submit(job("b", NONE))
    run_out(engine)
    assert engine.admission.out == 1


def test_a_setting_of_another_engine_is_refused() -> None:
    engine, *_ = world()
    other = Setting.of("other", "langevin", network="short_run", chains=1, steps=1, tau=0.1)
    with pytest.raises(ValueError, match="not made for setting other: its cost is not known"):
        engine.admit(other)
    assert nothing_is_out(engine)


def test_a_permit_is_for_one_job_of_its_setting() -> None:
    engine, *_ = world()
    with engine.admit(SHORT) as permit:
        engine.submit(job("a"), permit)
    assert engine.admission.out == 1  # the job has it now
    for wrong in (permit, engine.admit(LONG), released(engine)):
        with pytest.raises(ValueError, match="permit"):
            engine.submit(job("b"), wrong)
    assert engine.admission.out == 1
    run_out(engine)
    assert [outcome.job.id for outcome in engine.collect()] == ["a"]
    assert nothing_is_out(engine)


def released(engine: Engine) -> Permit:
    permit = engine.admit(SHORT)
    permit.release()
    return permit


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"id": "held"}])
def test_a_job_that_cannot_be_taken_gives_its_permit_back(wrong: dict[str, object]) -> None:
    engine, *_ = world()
    engine.submit(job("held"))
    with pytest.raises(ValueError, match=r"seed|held"):
        engine.submit(job(**({"id": "new"} | wrong)), engine.admit(SHORT))  # type: ignore[arg-type]
    assert engine.admission.out == 1


def test_every_end_of_a_job_gives_its_permit_back() -> None:
    engine, runner, _ = world()
    runner.break_on = lambda batch: any(seed == 13 for seed, _ in batch.keys)
    engine.submit(job("answered"), engine.admit(SHORT))
    engine.submit(job("late", LONG, deadline=0.01), engine.admit(LONG))
    engine.submit(job("broken", ADP, seed=13), engine.admit(ADP))
    engine.submit(job("cancelled", LONG), engine.admit(LONG))
    assert engine.cancel("cancelled")
    run_out(engine)
    assert len(engine.collect()) == 4
    assert nothing_is_out(engine)
    engine.submit(job("drained", LONG), engine.admit(LONG))
    engine.drain(0.0)
    run_out(engine)
    assert nothing_is_out(engine)
    with pytest.raises(Draining):
        engine.admit(NONE)


def test_a_permit_from_before_a_drain_is_too_late_and_comes_back() -> None:
    engine, *_ = world()
    permit = engine.admit(SHORT)
    engine.drain(10.0)
    with pytest.raises(Draining):
        engine.submit(job("a"), permit)
    assert nothing_is_out(engine)


@pytest.mark.timeout(300)
def test_concurrent_clients_leave_nothing_behind() -> None:
    engine, runner, _ = world(EngineLimits(backlog=0.5, few=1, jobs=20))
    runner.break_on = lambda batch: any(seed % 50 == 7 for seed, _ in batch.keys)
    ends: dict[str, int] = {}
    lock = threading.Lock()

    def client(number: int, driver: Driver) -> None:
        rng = random.Random(number)
        for k in range(60):
            end = one_request(f"{number}.{k}", rng, driver)
            with lock:
                ends[end] = ends.get(end, 0) + 1

    with Driver(engine) as driver:
        clients = [threading.Thread(target=client, args=(n, driver)) for n in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(WAIT)
    assert sum(ends.values()) == 8 * 60
    assert {"answer", "broken image", "cancelled"} <= set(ends)
    assert nothing_is_out(engine)


def one_request(id: str, rng: random.Random, driver: Driver) -> str:
    """How a request ended that is refused, broken, given up or answered."""
    setting = rng.choice(SETTINGS)
    try:
        with driver.admit(setting) as permit:
            if rng.random() < 0.2:
                raise UnicodeError("broken image")
            late = 1e-9 if rng.random() < 0.1 else None
            future = driver.submit(job(id, setting, seed=rng.randrange(1000), deadline=late), permit)
            if rng.random() < 0.3 and future.cancel():
                return "cancelled"
            future.result(WAIT)
            return "answer"
    except UnicodeError:
        return "broken image"
    except (Overloaded, DeadlineExceeded, EngineFailure) as error:
        return type(error).__name__


def test_a_driver_that_is_closed_admits_nobody_and_keeps_no_permit() -> None:
    engine, *_ = world()
    driver = Driver(engine, closed="come back tomorrow")
    permit = driver.admit(SHORT)
    driver.close()
    with pytest.raises(Draining, match="come back tomorrow"):
        driver.admit(SHORT)
    with pytest.raises(Draining, match="come back tomorrow"):
        driver.submit(job("a"), permit)
    assert nothing_is_out(engine)


def test_a_job_given_up_before_the_engine_saw_it_gives_its_permit_back() -> None:
    engine, *_ = world()
    with Driver(engine) as driver:
        gate, reached = threading.Event(), threading.Event()
        held = driver.call(lambda: (reached.set(), gate.wait(WAIT)))
        assert reached.wait(WAIT)
        future = driver.submit(job("a"), driver.admit(SHORT))
        assert future.cancel()
        gate.set()
        held.result(WAIT)
        driver.submit(job("b")).result(WAIT)
        assert engine.admission.out == 0


def test_prices_follow_what_requests_of_the_setting_needed() -> None:
    engine, *_ = world()
    listed = engine.admission.price(SHORT)
    for i in range(60):
        permit = engine.admit(SHORT)
        engine.submit(job(f"r{i}"), permit)
        permit.charge(2 * listed)  # the look at a large image, say
        run_out(engine)
    assert engine.admission.price(SHORT) == pytest.approx(3 * listed, rel=0.01)
    assert engine.admission.price(LONG) == pytest.approx(PRICE)


def test_what_is_used_up_doubles() -> None:
    engine, *_ = world()
    permit = engine.admit(SHORT)
    for used, left in ((0.5, 0.5), (1.0, 1.0), (2.5, 1.5), (4.0, 4.0)):
        permit.charge(used * permit.price - permit.served)
        assert permit.left == pytest.approx(left * permit.price)
        assert engine.backlog == pytest.approx(permit.left)


def test_a_job_that_was_cut_off_teaches_that_it_was_not_enough() -> None:
    engine, *_ = world()
    price = engine.admission.price(LONG)
    for share in (0.5, 3.0):
        permit = engine.admit(LONG)
        engine.submit(job("late", LONG), permit)
        permit.charge(share * price)
        engine.cancel("late")
        assert engine.admission.price(LONG) == pytest.approx(price * (1.2 if share > 1 else 1))


def test_who_waits_counts_also_when_prices_have_fallen() -> None:
    engine, *_ = world(EngineLimits(backlog=1.0, few=1))
    permits = []
    for _ in range(40):
        try:
            permits.append(engine.admit(LONG))
        except Overloaded:
            cheap = engine.admit(SHORT)
            engine.submit(job("cheap"), cheap)
            permits[0].line.price *= 1 - 1e-12  # as costs and needs move all the time
            engine.cancel("cheap")
    assert len(permits) == 1


def test_many_settings_let_no_crowd_in() -> None:
    engine, *_ = world(EngineLimits(backlog=0.1, few=1))
    settings = [
        Setting.of(f"s{steps}", "langevin", network="energy", chains=20, steps=steps, tau=0.1)
        for steps in range(60, 0, -1)  # dear ones first: none has cheaper ones before it
    ]
    for setting in settings:
        with contextlib.suppress(Overloaded):
            engine.admit(setting)
    assert 8 <= engine.admission.out <= 9
    assert sum(min(one.left, 0.1) for one in engine.admission._out) <= 0.75 + 0.1


def test_dear_requests_keep_no_cheap_one_out() -> None:
    engine, *_ = world(EngineLimits(backlog=0.01, few=1))
    engine.submit(job("dear", LONG))
    with pytest.raises(Overloaded):
        engine.admit(LONG)
    engine.submit(job("cheap"))  # 0.016 s, and it goes first
    with pytest.raises(Overloaded):
        engine.admit(SHORT)
    run_out(engine)
    assert [outcome.job.id for outcome in engine.collect()] == ["cheap", "dear"]


def test_a_few_jobs_get_in_whatever_they_cost() -> None:
    engine, *_ = world(EngineLimits(backlog=0.01, few=3))
    permits = [engine.admit(LONG) for _ in range(3)]
    with pytest.raises(Overloaded):
        engine.admit(LONG)
    engine.admit(NONE).release()  # cheaper than all that waits
    permits[0].release()
    assert engine.admit(LONG).price == pytest.approx(PRICE)


def test_a_crowd_of_cheap_jobs_leaves_no_room_for_dear_ones() -> None:
    engine, *_ = world(EngineLimits(backlog=0.01, few=3))
    for _ in range(3):
        engine.admit(SHORT)
    with pytest.raises(Overloaded):
        engine.admit(LONG)
