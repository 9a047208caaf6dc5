"""Replicas of one model on any number of machines, as a backend of a door.

What a cluster of them is made of is not known here (`Cluster`; deploy.ray_serve has one of Ray Serve).  Each
replica says a few times a second how it stands; by that the door refuses what no replica would take, before
it reads a body.  The replica itself has the last word.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from metastable.bundle import Bundle
from metastable.engine.engine import LATE
from metastable.errors import DeadlineExceeded, Draining, Overloaded, Unavailable
from metastable.serving import judging
from metastable.serving.backends.base import Judged, Question, Room, Served
from metastable.serving.backends.channel import room_of
from metastable.serving.backends.parts import Parts
from metastable.serving.backends.replica import Asked, Part, Piece, Told
from metastable.serving.control import error_of, served_of
from metastable.serving.metrics import Metrics

log = logging.getLogger(__name__)

LOOK = 0.2
"""Seconds between two looks at the replicas."""
STALE = 3.0
"""Age in seconds of what a replica said of itself above which it counts as gone."""
GRACE = 1.0
"""Seconds that a replica has after a deadline to send the best answer so far."""
TRIES = 2
"""Times that a question is asked, where a replica dies over it or refuses what another would take.

No more: a question that kills whoever has it must not kill them all.
"""
STARTING = "the replicas are being started: try again"
STOPPING = "the server is stopping: send the request to another one"
NONE = "no replica is left: try again"
LOST = "the replica that had the request has ended: try again"


class Gone(Exception):
    """The replica that had a question has ended, or cannot be reached."""


class Cluster(Protocol):
    """Whatever carries questions to replicas."""

    async def ask(self, asked: Asked) -> Told:
        """What a replica says; which one is the cluster's choice.

        Raises Gone, and Overloaded where too many questions wait for a replica.
        """
        ...

    async def look(self) -> Sequence[tuple[float, dict[str, Any]]]:
        """What replicas last said of themselves (`Replica.state`), and how many seconds ago."""
        ...


@dataclass
class _Room:
    """Nothing is kept: the replica admits the question when it comes."""

    async def __aenter__(self) -> Room:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class Replicas:
    """A `Backend`; see the module.

    Args:
        bundle: what the replicas serve, for verdicts that are put together of pieces.
        metrics: counts every verdict.
        split: chains of a setting from which on they are shared among replicas; 0 never.
    """

    def __init__(self, cluster: Cluster, bundle: Bundle, metrics: Metrics, *, split: int = 64) -> None:
        self._cluster, self._bundle, self._metrics, self._split = cluster, bundle, metrics, split
        self._parts = Parts(bundle, self._piece, lambda: self.count)
        self._states: list[dict[str, Any]] = []
        self._seen = self._full = float("-inf")  # when there was an answer, and one with a state in it
        self._served: Served | None = None
        self._closing = False
        self._under_way: set[asyncio.Task[Told]] = set()
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Replicas:
        self._watch = asyncio.create_task(self._watching())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(0.0)

    # --- what the door asks --------------------------------------------------------------------

    @property
    def served(self) -> Served:
        assert self._served is not None, "it is known once the backend has been ready"
        return self._served

    @property
    def ready(self) -> bool:
        return bool(self._states) and not self._closing

    @property
    def backlog(self) -> float:
        """The mean over replicas: what a question waits for is the work of one."""
        return sum(float(one["backlog"]) for one in self._states) / max(1, len(self._states))

    @property
    def chains(self) -> int:
        """Those between their first and last step, on all replicas."""
        return sum(int(one["chains"]) for one in self._states)

    @property
    def count(self) -> int:
        """Replicas that are there."""
        return len(self._states)

    def check_room(self, setting: str) -> None:
        if self._closing:
            raise Draining(STOPPING)
        if not self._states:
            raise Unavailable(STARTING)
        refusals = [room_of(state, setting) for state in self._states]
        if all(refusals):
            raise min(
                (one for one in refusals if one is not None),
                key=lambda one: getattr(one, "retry_after", None) or 0.0,
            )

    async def admit(self, setting: str) -> Room:
        self.check_room(setting)
        return _Room()

    async def ask(self, question: Question, room: Room) -> Judged:
        chosen = self._bundle.settings[question.options.setting]
        with question.follow.during("replica"):
            if self._split and chosen.most_chains >= self._split and self.count > 1:
                judged = await self._parts.ask(question, self.served.runner)
            else:
                told = (await self._told(question)).judged
                assert told is not None, "no part was asked for"
                judged = told
        if judged.counted is not None and question.counted:
            self._metrics.verdict(judged.counted)
        return dataclasses.replace(judged, counted=None)

    async def close(self, drain: float) -> None:
        self._closing = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=drain)
        tasks: list[asyncio.Task[Any]] = [*self._under_way, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one question --------------------------------------------------------------------------

    async def _told(self, question: Question, part: Part | None = None) -> Told:
        """What a replica says of a question, or of some of its chains; asked again where that may help.

        Noise is a function of the seed, so whoever is asked again says the same: but a seed that nobody
        named is drawn by the replica, and dies with it unseen.
        """
        for turn in range(TRIES):
            last = turn == TRIES - 1
            if not self._states:
                raise Unavailable(NONE)
            try:
                told = await self._within(
                    question, self._cluster.ask(Asked.of(question, self._bundle.digest, part))
                )
            except Gone:
                log.warning("a replica ended over a request; asked %d of %d times", turn + 1, TRIES)
                if last or self._closing:
                    raise Unavailable(LOST) from None
                continue
            if told.refused is None:
                return told
            error = error_of(**told.refused)
            elsewhere = any(room_of(state, question.options.setting) is None for state in self._states)
            if last or not isinstance(error, Overloaded | Draining) or not elsewhere or self.count < 2:
                raise error
        raise AssertionError("the last turn returns or raises")

    async def _within(self, question: Question, asking: Awaitable[Told]) -> Told:
        """Until the deadline and a little longer; cancelled, the replica gives the chains up."""
        task = asyncio.ensure_future(asking)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        left = None if question.deadline is None else max(0.0, question.deadline - time.monotonic()) + GRACE
        try:
            async with asyncio.timeout(left):
                return await task
        except TimeoutError:
            raise DeadlineExceeded(LATE) from None
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise  # whoever asked has left
            if self._closing:
                raise Draining(STOPPING) from None
            raise Gone("given up") from None

    async def _piece(self, question: Question, part: Part) -> Piece:
        piece = (await self._told(question, part)).piece
        assert piece is not None, "a part was asked for"
        return piece

    # --- looking at the replicas ---------------------------------------------------------------

    async def _watching(self) -> None:
        while True:
            try:
                async with asyncio.timeout(STALE):
                    await self._look()
            except Exception as error:
                if self._states and time.monotonic() - self._seen > STALE:
                    log.warning("the replicas cannot be looked at: %s: %s", type(error).__name__, error)
                    self._states = []
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        found = await self._cluster.look()
        self._seen = now = time.monotonic()
        # Those of another bundle are of what was deployed before, or after.
        ours = self._bundle.digest
        fresh = [state for age, state in found if age <= STALE and state["served"]["digest"] == ours]
        if fresh:
            self._full = now
            if self._served is None:
                self._served = served_of(fresh[0]["served"])
                judging.name(self._bundle, self._served.runner, self._metrics)
        elif not found and now - self._full <= STALE:
            return  # a board that has just begun: replicas will say it again
        self._states = fresh
        if not fresh and now - self._full > 2 * STALE:
            # Nobody works on these, and a cluster may let them wait for a replica without an end.
            for task in self._under_way:
                task.cancel()
