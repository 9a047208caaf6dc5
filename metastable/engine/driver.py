"""A thread that drives an engine, for scripts, tests and front ends without a loop of their own.

    with Driver(engine) as driver:
        permit = driver.admit(setting)                # at once, from any thread
        answer = driver.submit(job, permit).result()  # from any thread
        answer = await driver.answer(job, permit)     # from any event loop
        logits = driver.call(work).result()           # something else with the engine's runner

Cancelling the future, or the task that awaits it, frees the job's chains at the next segment and gives its
permit back.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from metastable.engine.admission import Permit
from metastable.engine.engine import Engine
from metastable.engine.job import Answer, Failure, Job
from metastable.errors import Draining
from metastable.settings import Setting

T = TypeVar("T")
CALLS = 0.1  # seconds between two segments that calls may take, or one call if that is longer


class Driver:
    """Owns `engine` from now on: nobody else may call it.

    Args:
        closed: what is said to those who come after its end.
    """

    def __init__(
        self, engine: Engine, *, closed: str = "the driver is closed: send the request to another one"
    ) -> None:
        self._engine, self._closed = engine, closed
        self._inbox: deque[tuple[Job, Permit | None, Future[Answer]]] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._futures: dict[str, Future[Answer]] = {}
        self._changed = threading.Condition()
        self._closing: float | None = None
        self._thread = threading.Thread(target=self._run, name="metastable-engine", daemon=True)
        self._thread.start()

    def admit(self, setting: Setting) -> Permit:
        """Room for one job of this setting, without waiting for the engine's thread.

        Raises what `Engine.admit` raises, and Draining if the driver is closed.
        """
        if self._closing is not None:
            raise Draining(self._closed)
        return self._engine.admit(setting)

    def submit(self, job: Job, permit: Permit | None = None) -> Future[Answer]:
        """The answer to come; the future raises what `Engine.submit` raises, or the job's failure.

        Raises Draining if the driver is closed; the permit has come back then.
        """
        future: Future[Answer] = Future()
        try:
            self._put(self._inbox, (job, permit, future))
        except Draining:
            if permit is not None:
                permit.release()
            raise
        return future

    def call(self, work: Callable[[], T]) -> Future[T]:
        """What `work` returns or raises on the engine's thread, between two segments.

        A runner serves one thread: whatever else is asked of the engine's goes this way.

        Raises Draining if the driver is closed.
        """
        future: Future[T] = Future()
        self._put(self._calls, (work, future))
        return future

    async def answer(self, job: Job, permit: Permit | None = None) -> Answer:
        """The same for asyncio."""
        return await asyncio.wrap_future(self.submit(job, permit))

    @property
    def alive(self) -> bool:
        """Whether its thread is there: after its end, or a fault of the engine's own, it is not."""
        return self._thread.is_alive()

    def close(self, drain: float = 10.0) -> None:
        """Take no more jobs, finish or expire those held within `drain` seconds, end the thread."""
        with self._changed:
            if self._closing is None:
                self._closing = drain
            self._changed.notify()
        if threading.current_thread() is not self._thread:  # which may be the one that collects garbage
            self._thread.join()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, queue: deque[T], one: T) -> None:
        with self._changed:
            if self._closing is not None:
                raise Draining(self._closed)
            queue.append(one)
            self._changed.notify()

    def _run(self) -> None:
        draining = False
        while True:
            with self._changed:
                while not (self._inbox or self._calls or self._engine.held or self._closing is not None):
                    self._changed.wait()
                arrived, closing = list(self._inbox), self._closing
                self._inbox.clear()
            self._call()
            for job, permit, future in arrived:
                self._take(job, permit, future)
            if closing is not None and not draining:
                draining = True
                self._engine.drain(closing)
            for id in [id for id, future in self._futures.items() if future.cancelled()]:
                self._engine.cancel(id)
            self._engine.advance()
            self._deliver()
            if draining and not self._engine.held and not self._calls:
                return

    def _call(self) -> None:
        """Do what was asked for beside jobs, for CALLS seconds: the chains of jobs go on in between."""
        ends = time.perf_counter() + CALLS
        while self._calls:
            _do(*self._calls.popleft())
            if time.perf_counter() >= ends:
                return

    def _take(self, job: Job, permit: Permit | None, future: Future[Answer]) -> None:
        if future.cancelled():  # before anything was done for it
            if permit is not None:
                permit.release()
            return
        try:
            self._engine.submit(job, permit)
        except Exception as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            self._futures[job.id] = future

    def _deliver(self) -> None:
        for outcome in self._engine.collect():
            future = self._futures.pop(outcome.job.id)
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked has gone
            if isinstance(outcome, Failure):
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome)


def _do(work: Callable[[], Any], result: Future[Any]) -> None:
    if not result.set_running_or_notify_cancel():
        return
    try:
        result.set_result(work())
    except Exception as error:
        result.set_exception(error)
