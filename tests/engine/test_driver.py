import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from metastable.engine.driver import Driver
from metastable.errors import DeadlineExceeded, Draining
from tests.engine.worlds import LONG, SHORT, job, world

WAIT = 60.0

pytestmark = pytest.mark.timeout(300)


def test_many_threads_get_their_own_answers() -> None:
    engine, *_ = world()
    with Driver(engine) as driver:
        futures = {i: driver.submit(job(f"r{i}", seed=i, value=float(i))) for i in range(20)}
        answers = {i: future.result(WAIT) for i, future in futures.items()}
    assert [answers[i].job.id for i in range(20)] == [f"r{i}" for i in range(20)]
    assert engine.held == 0


def test_event_loops_can_wait_for_answers() -> None:
    async def ask(driver: Driver) -> list[str]:
        answers = await asyncio.gather(*(driver.answer(job(f"r{i}", seed=i)) for i in range(5)))
        return [answer.job.id for answer in answers]

    engine, *_ = world()
    with Driver(engine) as driver:
        assert asyncio.run(ask(driver)) == [f"r{i}" for i in range(5)]


def test_refusals_and_failures_come_out_of_the_future() -> None:
    engine, *_ = world()
    with Driver(engine) as driver:
        with pytest.raises(ValueError, match="seed"):
            driver.submit(job("a", seed=-1)).result(WAIT)
        with pytest.raises(DeadlineExceeded):
            driver.submit(job("b", LONG, deadline=-1.0)).result(WAIT)
        assert driver.submit(job("c")).result(WAIT).job.id == "c"


def test_a_cancelled_future_frees_its_chains() -> None:
    engine, runner, _ = world()
    gate = threading.Event()
    runner.break_on = lambda batch: not gate.wait(WAIT)
    with Driver(engine) as driver:
        future = driver.submit(job("a", LONG))
        other = driver.submit(job("b", SHORT))
        time.sleep(0.05)  # most likely a segment is under way; it does not matter if not
        assert future.cancel()
        gate.set()
        assert other.result(WAIT).job.id == "b"
        with pytest.raises(CancelledError):
            future.result(WAIT)
    assert engine.chains.used == 0


def test_a_closed_driver_finishes_its_jobs_and_takes_no_more() -> None:
    engine, *_ = world()
    driver = Driver(engine)
    future = driver.submit(job("a", LONG))
    driver.close(drain=1e9)
    assert future.result(WAIT).job.id == "a"
    with pytest.raises(Draining):
        driver.submit(job("b"))
    driver.close()


def test_other_work_runs_on_the_engines_thread() -> None:
    engine, *_ = world()
    with Driver(engine) as driver:
        driver.submit(job("a", LONG))
        assert driver.call(threading.current_thread).result(WAIT).name == "metastable-engine"
        with pytest.raises(ZeroDivisionError):
            driver.call(lambda: 1 / 0).result(WAIT)
        assert driver.submit(job("b")).result(WAIT).job.id == "b"
    with pytest.raises(Draining):
        driver.call(threading.current_thread)


def test_a_driver_can_be_closed_from_its_own_thread() -> None:
    engine, *_ = world()
    driver = Driver(engine)
    driver.call(driver.close).result(WAIT)
    with pytest.raises(Draining):
        driver.submit(job("a"))
