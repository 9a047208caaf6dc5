"""TorchServe behind the door: predictions over one unix socket, everything else over control channels.

    async with TorchServe(socket, folder) as backend:   # ready some time later, again and again
        async with await backend.admit("fast") as room:
            judged = await backend.ask(question, room)

TorchServe's queue is never full: what it cannot hold waits here, where it costs nothing and can leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from metastable.engine.engine import LATE
from metastable.errors import DeadlineExceeded, Draining, Overloaded, Unavailable
from metastable.images import DecodedImage
from metastable.serving.backends.base import Judged, Question, Room, Served
from metastable.serving.backends.channel import Channel, cheapest, room_of
from metastable.serving.backends.exchange import BACK_IN, Exchange, exact, headers, judged
from metastable.serving.control import PATTERN, UNCOUNTED, served_of
from metastable.serving.options import RequestOptions

log = logging.getLogger(__name__)

LOOK = 0.2
"""Seconds between two looks at the workers; what `check_room` goes by is at most FRESH old."""
FRESH = 0.25
UNBOOKED = 16
"""Requests that may be under way without a permit of a worker that has room, as far as is known.

Asking for one takes a millisecond of both sides.  These the worker admits, or refuses, when they come.
"""
GRACE = 1.0
"""Seconds that a worker has after a deadline to send the best answer so far."""
PATIENCE = 660.0
"""Seconds after which no answer comes any more: more than the longest deadline."""
PROOF = 60.0
"""Seconds that the prediction may take which shows that there are predictions."""
SILENCE = 10.0
"""Seconds without any answer after which it must show again that there are predictions."""
STARTING = "the model server is being started: try again"
STOPPING = "the server is stopping: send the request to another one"


class TorchServe:
    """A `Backend`; see the module.

    Args:
        socket: TorchServe's inference address.
        folder: of the workers' control sockets.
        model: its name in TorchServe.
        keys: the file into which TorchServe writes the keys that it asks for, at each start; None where it
            asks for none.
    """

    def __init__(
        self, socket: Path, folder: Path, *, model: str = "metastable", keys: Path | None = None
    ) -> None:
        self._folder, self._keys = folder, keys
        self._exchange = Exchange(str(socket), model, PATIENCE)
        self._workers: dict[Path, Channel] = {}
        self._served: Served | None = None
        self._room_inside = asyncio.Semaphore(1)
        self._proved = self._closing = False
        self._unbooked, self._most_unbooked = 0, 0
        self._under_way: set[asyncio.Task[dict[str, Any]]] = set()
        self._sent: set[str] = set()  # jobs that TorchServe has
        self._trouble = ""
        self._lost, self._took = (
            time.monotonic(),
            BACK_IN,
        )  # when it was last ready; how long it was not, last time
        self._watch: asyncio.Task[None] | None = None
        self._proof: asyncio.Task[None] | None = None
        self._answered = time.monotonic()

    async def __aenter__(self) -> TorchServe:
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
        return self._proved and not self._closing and bool(self._alive())

    @property
    def backlog(self) -> float:
        return sum(one.backlog for one in self._alive())

    def check_room(self, setting: str) -> None:
        """As in `Backend`, by a look at the workers that is at most FRESH seconds old; else it passes."""
        since = asyncio.get_running_loop().time() - FRESH
        seen = [one for one in self._least() if one.seen >= since]
        if seen and (refused := room_of(seen[0].state, setting)):
            raise refused

    async def admit(self, setting: str) -> Room:
        worker = self._least()[0]
        fresh = worker.seen >= asyncio.get_running_loop().time() - FRESH
        if fresh and self._unbooked < self._most_unbooked and room_of(worker.state, setting) is None:
            self._unbooked += 1
            return _Unbooked(worker, self._came_back)
        return _Room(worker, await worker.admit(setting))

    async def ask(self, question: Question, room: Room) -> Judged:
        assert isinstance(room, _Room), "a room is of the backend that gave it"
        room.taken = True
        job = ("" if question.counted else UNCOUNTED) + secrets.token_hex(8)
        exchange = asyncio.create_task(self._predict(question, job, room.token))
        self._under_way.add(exchange)
        exchange.add_done_callback(self._under_way.discard)
        exchange.add_done_callback(_looked_at)
        try:
            with question.follow.during("worker"):
                async with asyncio.timeout(_left(question.deadline)):
                    said = await asyncio.shield(exchange)
        except TimeoutError:
            self._give_up(exchange, job, room)
            raise DeadlineExceeded(LATE) from None
        except Overloaded:  # what was known of it is not true any more: the next one asks
            room.worker.seen = float("-inf")
            raise
        except asyncio.CancelledError:
            self._give_up(exchange, job, room)
            task = asyncio.current_task()
            if exchange.cancelled() and task is not None and not task.cancelling():
                raise Draining(STOPPING) from None
            raise
        finally:
            if len(self._workers) > 1:  # another one may have had the request
                room.release()
        return judged(said, question.image)

    async def close(self, drain: float) -> None:
        self._closing = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=drain)
        others = [one for one in (self._watch, self._proof) if one is not None]
        tasks: list[asyncio.Task[Any]] = [*self._under_way, *others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._exchange.close()

    def _came_back(self) -> None:
        self._unbooked -= 1

    # --- one prediction ------------------------------------------------------------------------

    async def _predict(self, question: Question, job: str, token: str | None) -> dict[str, Any]:
        """What a worker answers; it goes on, though nobody waits, until TorchServe forgets it."""
        async with self._room_inside:
            body, named = exact(question.image.pixels), headers(question, job, token)
            self._sent.add(job)
            try:
                said = await self._exchange.predict(body, named)
                self._answered = time.monotonic()
                return said
            except Unavailable as error:
                # Another worker may answer the next one; where there is none, only a proof can tell.
                if len(self._alive()) <= 1:
                    self._lose()
                    error.retry_after = self._back_in()
                raise
            finally:
                self._sent.discard(job)

    def _give_up(self, exchange: asyncio.Task[dict[str, Any]], job: str, room: _Room) -> None:
        """Before it is sent, by leaving; then by telling all workers, because any of them may have it."""
        if job not in self._sent:
            exchange.cancel()
            room.release()
            return
        for worker in self._alive():
            worker.tell("cancel", job=job)

    def _back_in(self) -> float:
        """Seconds until it will probably be ready, going by the last time."""
        return max(1.0, self._took - (time.monotonic() - self._lost))

    def _alive(self) -> list[Channel]:
        return [one for one in self._workers.values() if one.alive]

    def _least(self) -> list[Channel]:
        """The workers, that with the least backlog first.

        Raises Draining, and Unavailable where none is there.
        """
        if self._closing:
            raise Draining(STOPPING)
        if not self.ready:
            raise Unavailable(STARTING, self._back_in())
        return sorted(self._alive(), key=lambda one: one.backlog)

    # --- looking at the workers ----------------------------------------------------------------

    async def _watching(self) -> None:
        while True:
            try:
                await self._find()
                silent = time.monotonic() - self._answered > SILENCE
                if self._workers and self._proof is None and (silent or not self._proved):
                    self._proof = asyncio.create_task(self._proving())
            except Exception as error:
                self._note(f"{type(error).__name__}: {error}")
            await asyncio.sleep(LOOK)

    async def _proving(self) -> None:
        try:
            async with asyncio.timeout(PROOF + GRACE):
                await self._prove()
        except Exception as error:
            self._note(f"{type(error).__name__}: {error}")
            self._lose()  # also where it had predicted before: it hangs
        finally:
            self._proof = None

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:  # five times a second would be too often
            log.warning("the model server is not ready: %s", trouble)
        self._trouble = trouble

    async def _find(self) -> None:
        """Connect to workers that are new, forget those that have gone, renew the state of the others."""
        self._workers = {path: one for path, one in self._workers.items() if one.alive}
        for path in set(self._folder.glob(PATTERN)) - self._workers.keys():
            try:
                worker = await Channel.connect(path)
            except OSError:  # of a worker that is dead: those that live listen before they have a name
                path.unlink(missing_ok=True)
                continue
            try:
                found = await worker.ask("describe")
                self._served, window = served_of(found["served"]), max(1, int(found["window"]))
            except Exception:
                worker.close()
                raise
            self._workers[path] = worker
            if not self._proved:
                self._room_inside = asyncio.Semaphore(window)
                self._most_unbooked = min(UNBOOKED, window // 2)  # none of these waits here
        await asyncio.gather(*(one.look() for one in self._workers.values()), return_exceptions=True)
        if not self._workers:
            self._lose()

    def _lose(self) -> None:
        if self._proved:
            self._proved, self._lost = False, time.monotonic()

    async def _prove(self) -> None:
        """Ready is who has made a prediction: of a grey image, by the cheapest setting."""
        state = next(iter(self._workers.values())).state
        grey = torch.full(self.served.shape, 0.5)
        image = DecodedImage(grey, "NPY", (grey.shape[2], grey.shape[1]), False, ())
        options = RequestOptions(cheapest(state), 1, None, None)
        question = Question("proof", image, options, time.monotonic() + PROOF)
        if self._keys is not None:
            self._exchange.key = str(json.loads(self._keys.read_text("utf-8"))["inference"]["key"])
        with contextlib.suppress(Overloaded):  # it predicts for others
            await self._predict(question, UNCOUNTED + "proof", None)
        self._answered = time.monotonic()
        if not self._proved:
            self._proved, self._took = True, self._answered - self._lost


class _Room:
    """A permit that a worker keeps under a token; without one, none."""

    def __init__(self, worker: Channel, token: str | None) -> None:
        self.worker, self.token, self.taken = worker, token, False

    def release(self) -> None:
        if self.token is not None:
            self.worker.tell("release", token=self.token)

    async def __aenter__(self) -> _Room:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.taken:
            self.release()


class _Unbooked(_Room):
    """A place among those that come without a permit."""

    def __init__(self, worker: Channel, left: Callable[[], None]) -> None:
        super().__init__(worker, None)
        self._left = left

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left()


def _left(deadline: float | None) -> float | None:
    """Seconds until there is surely no answer any more; None for no end."""
    return None if deadline is None else max(0.0, deadline - time.monotonic()) + GRACE


def _looked_at(task: asyncio.Task[Any]) -> None:
    """Where nobody waits for a prediction any more, what went wrong with it is of no interest."""
    if not task.cancelled():
        task.exception()
