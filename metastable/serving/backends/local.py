"""The engine in this process, on a thread of its own: no Java, ready in seconds."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from metastable.bundle import Bundle
from metastable.engine import assembly
from metastable.engine.admission import Permit
from metastable.engine.driver import Driver
from metastable.engine.engine import LATE, Engine, EngineLimits
from metastable.engine.inspection import Inspector, Raw
from metastable.engine.job import Answer
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
        metrics: counts every verdict; None leaves that to whoever asks (`Judged.counted`).
        allow_seed: whether clients may set the seed (known noise breaks the defense).
        limits: of the work at a time and the work that may wait.
        sizes: of the batches whose cost is measured; None takes what suits the runner.

    Raises BundleError for a bundle without a calibration, EngineFailure for a runner that cannot run it.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        metrics: Metrics | None,
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
        if metrics is not None:
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

    @property
    def alive(self) -> bool:
        """Whether the engine's thread is there."""
        return self._driver.alive

    @property
    def capacity(self) -> tuple[float, int]:
        """Seconds of work that may wait, and chains that can be under way."""
        return self._engine.limits.backlog, self._engine.chains.slots

    def state(self) -> dict[str, Any]:
        """See `judging.state_of`."""
        return judging.state_of(self._engine, self._bundle.settings.by_name)

    def check_room(self, setting: str) -> None:
        self._permit(setting).release()

    async def admit(self, setting: str) -> Room:
        return _Kept(self._permit(setting))

    async def ask(self, question: Question, room: Room) -> Judged:
        assert isinstance(room, _Kept), "the room is of another backend"
        raw, looked, answer = await self._answer(question, room.permit, 0)
        body, counted = judging.told(
            self._bundle, answer, raw, question.image, question.options, runner=self.served.runner
        )
        seconds = {"anomaly": looked} | answer.seconds
        if self._metrics is None:
            return Judged(body, seconds, counted if question.counted else None)
        if question.counted:
            self._metrics.verdict(counted)
        return Judged(body, seconds)

    async def part(
        self, question: Question, chains: range, *, decides: bool, raw: Raw | None = None
    ) -> tuple[Raw, float, Answer]:
        """Some of the chains of a question's setting, for whoever puts the parts of it together.

        Args:
            chains: their numbers, one after another.
            decides: whether they may stop early, where the setting does; only of the first ones.
            raw: the image as it came, where another one has looked already.

        Returns: the image as it came, the seconds of that look, and what the chains say.

        Raises what `admit` and `ask` raise.
        """
        setting = self._bundle.settings[question.options.setting]
        delta = setting.delta if decides else None
        setting = dataclasses.replace(setting, chains=len(chains), delta=delta)
        return await self._answer(question, self._driver.admit(setting), chains.start, raw)

    async def _answer(
        self, question: Question, permit: Permit, first: int, raw: Raw | None = None
    ) -> tuple[Raw, float, Answer]:
        # Until the engine has the job, leaving this gives the permit back.
        with permit:
            looked = 0.0
            if raw is None:
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
            job = dataclasses.replace(job, setting=permit.setting, first=first)
            permit.charge(looked)
            return raw, looked, await self._driver.answer(job, permit)

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
