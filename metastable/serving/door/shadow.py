"""A second setting, asked about some of what was answered, while nobody else asks for anything.

An image that came in interrupts it, and it starts again later: no answer waits for it.  It is told of nobody.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from metastable.errors import Overloaded
from metastable.serving.backends.base import Backend, Judged, Question, Room
from metastable.serving.door.models import Models
from metastable.serving.door.shadow_report import Report, Seen
from metastable.serving.faults import report
from metastable.serving.policy.counts import Counts
from metastable.serving.policy.values import Shadow

T = TypeVar("T")
LOOK = 0.02
"""Seconds between two looks at whether the engine is idle."""
LINGERS = 0.5
"""Seconds that an engine may take to let go of work that was given up."""
TRIES = 3
PATIENCE = 60.0
"""Seconds that a shadow's answer may take."""


@dataclass(frozen=True)
class Answered:
    """An image that was answered, and by what."""

    backend: Backend
    question: Question
    judged: Judged


@dataclass
class _Waiting:
    answered: Answered
    shadow: Shadow
    tries: int = 0


class Shadows:
    """Runs the shadows of one door.

    Args:
        draw: a number in [0, 1) for every image, that says whether it is sampled.
    """

    def __init__(self, models: Models, counts: Counts, draw: Callable[[], float] = random.random) -> None:
        self._models, self._counts, self._draw = models, counts, draw
        self._waiting: deque[_Waiting] = deque()
        self._images = 0  # of clients, under way
        self._asking: asyncio.Task[Judged] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._interrupted = float("-inf")
        self._closed = False
        self.report = Report()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While a client's image is under way no shadow runs."""
        self._images += 1
        self._interrupt()
        try:
            yield
        finally:
            self._images -= 1

    async def admit(self, backend: Backend, setting: str) -> Room:
        """As `Backend.admit`, where the shadow takes nobody's room."""
        return await self._after(lambda: backend.admit(setting))

    async def check_room(self, backend: Backend, setting: str) -> None:
        """As `Backend.check_room`, likewise."""

        async def check() -> None:
            backend.check_room(setting)

        await self._after(check)

    def offer(self, shadow: Shadow, answered: Sequence[Answered]) -> None:
        """Images whose answers were sent: some of them are sampled, and wait if there is a place."""
        for one in answered:
            if self._closed or one.question.options.setting == shadow.setting or self._draw() >= shadow.share:
                continue
            if len(self._waiting) >= shadow.waiting:
                self._count(shadow, "full")
                continue
            self._waiting.append(_Waiting(one, shadow))
        if self._waiting and (self._loop is None or self._loop.done()):
            self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Give up what waits, and write the report."""
        self._closed = True
        tasks = [one for one in (self._loop, self._asking) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self._waiting:
            self._count(one.shadow, "interrupted")
        self._waiting.clear()
        await self.report.write()

    # --- room for others -------------------------------------------------------------------------

    def _interrupt(self) -> None:
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            self._interrupted = time.monotonic()

    async def _after(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` returns; it is asked again while its refusal may be the fault of a shadow."""
        while True:
            try:
                return await ask()
            except Overloaded:
                self._interrupt()
                if time.monotonic() - self._interrupted > LINGERS:
                    raise
                await asyncio.sleep(LOOK / 2)

    # --- its own work ----------------------------------------------------------------------------

    async def _run(self) -> None:
        while self._waiting:
            if self._images or self._models.backlog > 0:
                await asyncio.sleep(LOOK)
                continue
            one = self._waiting.popleft()
            self._asking = asyncio.create_task(self._ask(one))
            await asyncio.wait([self._asking])
            if self._asking.cancelled():
                self._again(one)
            elif error := self._asking.exception():
                self._count(one.shadow, "failed")
                if not isinstance(error, Overloaded):
                    report("a shadow failed", error)
            else:
                self._compare(one, self._asking.result())
                if one.shadow.report is not None:
                    await self.report.write_at(one.shadow.report)

    def _again(self, one: _Waiting) -> None:
        one.tries += 1
        if one.tries < TRIES:
            self._waiting.appendleft(one)
        else:
            self._count(one.shadow, "interrupted")

    async def _ask(self, one: _Waiting) -> Judged:
        asked, backend = one.answered.question, one.answered.backend
        # Its noise is its own, also where a client fixed that of its answer.
        options = dataclasses.replace(asked.options, setting=one.shadow.setting, seed=None, deadline_ms=None)
        deadline = time.monotonic() + PATIENCE
        question = Question(secrets.token_hex(16), asked.image, options, deadline, counted=False)
        async with await backend.admit(options.setting) as room:
            return await backend.ask(question, room)

    def _compare(self, one: _Waiting, found: Judged) -> None:
        self._count(one.shadow, "compared")
        pair = (one.answered.question.options.setting, one.shadow.setting)
        seen = Seen.of(one.answered.judged, found)
        self._counts.compared(
            pair, label=seen.label, flag=seen.flag, chains=seen.chains, seconds=seen.seconds
        )
        self.report.add(pair, seen)

    def _count(self, shadow: Shadow, outcome: str) -> None:
        self._counts.shadow(shadow.setting, outcome)
        self.report.count(outcome)
