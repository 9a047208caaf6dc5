"""The engine in this process, on a thread of its own: no Java, ready in seconds."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType

import torch
from torch import Tensor

from metastable.bundle import Bundle
from metastable.engine import assembly
from metastable.engine.admission import Permit
from metastable.engine.driver import Driver
from metastable.engine.engine import LATE, Engine, EngineLimits
from metastable.engine.inspection import Inspector, Raw
from metastable.engine.runners import Runner
from metastable.errors import DeadlineExceeded
from metastable.pixels import at_most
from metastable.serving import judging
from metastable.serving.backends.base import Judged, Question, Room
from metastable.serving.metrics import Metrics

LOOKS, LOOK_PIXELS = 32, 2**15
"""Images that are looked at together, and their pixels in all, if it is more than one."""


class Local:
    """See the module; a `Backend`.

    Args:
        bundle: must carry an anomaly calibration.
        runner: made for this bundle; it belongs to the backend from now on.
        metrics: counts every verdict.
        allow_seed: whether clients may set the seed (known noise breaks the defense).
        limits: of the work at a time and the work that may wait.
        sizes: of the batches whose cost is measured; None takes what suits the runner.

    Raises BundleError for a bundle without a calibration, EngineFailure for a runner that cannot run it.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        metrics: Metrics,
        *,
        allow_seed: bool = False,
        limits: EngineLimits | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        inspector = Inspector(bundle, runner)
        self._engine = assembly.engine_for(
            runner,
            bundle.settings.by_name.values(),
            bundle.shape,
            limits,
            sizes=sizes,
            clock=time.monotonic,
            look=inspector,
        )
        self._bundle, self._metrics = bundle, metrics
        judging.introduce(bundle, self._engine, runner.name, metrics)
        metrics.follow(lambda: self._engine.backlog, lambda: self._engine.chains.used)
        self._driver = Driver(self._engine, closed="the server is stopping: send the request to another one")
        self._looks = _Looks(inspector, self._engine, self._driver, at_most(LOOKS, bundle.shape, LOOK_PIXELS))
        self._closed = False
        self.served = judging.served_of(bundle, allow_seed=allow_seed, runner=runner.name)

    @property
    def ready(self) -> bool:
        return not self._closed

    @property
    def backlog(self) -> float:
        return self._engine.backlog

    @property
    def chains(self) -> int:
        """Those between their first and last step."""
        return self._engine.chains.used

    def check_room(self, setting: str) -> None:
        self._permit(setting).release()

    async def admit(self, setting: str) -> Room:
        return _Kept(self._permit(setting))

    async def ask(self, question: Question, room: Room) -> Judged:
        assert isinstance(room, _Kept), "the room is of another backend"
        # Until the engine has the job, leaving this gives the permit back.
        async with room:
            with question.follow.during("look"):
                raw, looked = await self._look(question)
            job = judging.job_of(
                self._bundle,
                question.id,
                question.image,
                question.options,
                raw,
                question.deadline,
                question.follow.timeline,
            )
            room.permit.charge(looked)
            answer = await self._driver.answer(job, room.permit)
        body = judging.told(
            self._bundle,
            answer,
            raw,
            question.image,
            question.options,
            runner=self.served.runner,
            metrics=self._metrics if question.counted else None,
        )
        return Judged(body, {"anomaly": looked} | answer.seconds)

    async def close(self, drain: float) -> None:
        self._closed = True
        await asyncio.to_thread(self._driver.close, drain)

    async def _look(self, question: Question) -> tuple[Raw, float]:
        future = self._looks.add(question.image.pixels)
        try:
            async with asyncio.timeout_at(_on_loop(question.deadline)):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise DeadlineExceeded(LATE) from None

    def _permit(self, setting: str) -> Permit:
        return self._driver.admit(self._bundle.settings[setting])


class _Kept:
    """A permit as a room."""

    def __init__(self, permit: Permit) -> None:
        self.permit = permit

    async def __aenter__(self) -> Room:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.permit.release()  # nothing where a job has it


class _Looks:
    """Images that wait to be looked at: on the engine's thread, as many together as suits.

    Args:
        most: images of one look.
    """

    def __init__(self, inspector: Inspector, engine: Engine, driver: Driver, most: int) -> None:
        self._inspector, self._engine, self._driver, self._most = inspector, engine, driver, most
        self._waiting: deque[tuple[Tensor, Future[tuple[Raw, float]]]] = deque()

    def add(self, pixels: Tensor) -> Future[tuple[Raw, float]]:
        """What will be seen, and this image's share of the seconds it took.

        Raises Draining if the driver is closed.
        """
        future: Future[tuple[Raw, float]] = Future()
        self._waiting.append((pixels, future))
        self._driver.call(self._look)  # one for each: whichever comes first looks at all that wait
        return future

    def _look(self) -> None:
        batch: list[tuple[Tensor, Future[tuple[Raw, float]]]] = []
        while self._waiting and len(batch) < self._most:
            pixels, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                batch.append((pixels, future))
        if not batch:
            return
        started = time.monotonic()
        try:
            raws = self._inspector(torch.stack([pixels for pixels, _ in batch]))
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        seconds = time.monotonic() - started
        self._engine.looked(len(batch), seconds)
        for raw, (_, future) in zip(raws, batch, strict=True):
            future.set_result((raw, seconds / len(batch)))


def _on_loop(deadline: float | None) -> float | None:
    """A deadline on `time.monotonic` as one of the running loop."""
    return None if deadline is None else asyncio.get_running_loop().time() + deadline - time.monotonic()
