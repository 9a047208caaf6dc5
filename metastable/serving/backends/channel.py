"""The door's end of a worker's control channel: see metastable.serving.control."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

from metastable.errors import MetastableError, Unavailable
from metastable.serving.control import MOST_BYTES, error_of

PATIENCE = 5.0
"""Seconds without an answer after which a worker is given up: its answers take microseconds."""
BROKEN = "the worker that would have answered has ended, and another is being started: try again"


class Channel:
    """One connection, kept open; made by `Channel.connect`.  It is for one event loop.

    Attributes:
        alive: whether the worker is there, as far as is known.
        backlog: seconds of work that wait there, as it last said.
        state: its last answer to that, {} before.
        seen: when that was, on the loop's clock.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.alive, self.backlog, self.seen = True, 0.0, float("-inf")
        self.state: dict[str, Any] = {}
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: Path) -> Channel:
        """Connect; raises OSError where nobody listens."""
        return cls(*await asyncio.open_unix_connection(str(path), limit=MOST_BYTES))

    async def ask(self, what: str, **more: str) -> dict[str, Any]:
        """The answer.

        Raises what the worker refused it with, and Unavailable where it broke off.
        """
        future = self._send(what, more)
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await future
        except TimeoutError:
            self.close()
            raise Unavailable(BROKEN) from None
        return answer if isinstance(answer, dict) else {}

    def tell(self, what: str, **more: str) -> None:
        """Ask, and do not wait; nothing where the worker has gone."""
        with contextlib.suppress(Unavailable):
            self._send(what, more).add_done_callback(_looked_at)

    async def admit(self, setting: str) -> str:
        """A token.  Where the caller is cancelled meanwhile, it is given back when it comes."""
        asked = asyncio.ensure_future(self.ask("admit", setting=setting))
        try:
            answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(self._give_back)
            raise
        self.backlog = float(answer["backlog"])
        return str(answer["token"])

    async def look(self) -> None:
        """Renew `state`; raises what `ask` raises."""
        self.state = await self.ask("state")
        self.backlog, self.seen = float(self.state["backlog"]), asyncio.get_running_loop().time()

    def close(self) -> None:
        """Leave; whoever waits for an answer gets Unavailable."""
        self.alive = False
        self._task.cancel()
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(BROKEN))
        self._waiting.clear()

    def _send(self, what: str, more: dict[str, str]) -> asyncio.Future[Any]:
        if not self.alive:
            raise Unavailable(BROKEN)
        id = next(self._ids)
        future = self._waiting[id] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._waiting.pop(id, None))
        self._writer.write(json.dumps({"id": id, "ask": what, **more}).encode() + b"\n")
        return future

    async def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # a line too long is a ValueError
            while line := await self._reader.readline():
                said = json.loads(line)
                future = self._waiting.get(said["id"])
                if future is None or future.done():
                    continue
                if refused := said.get("refused"):
                    future.set_exception(
                        error_of(refused["code"], refused["message"], refused["retry_after"])
                    )
                else:
                    future.set_result(said["answer"])
        self.close()

    def _give_back(self, asked: asyncio.Future[dict[str, Any]]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self.tell("release", token=str(asked.result()["token"]))


def _looked_at(future: asyncio.Future[Any]) -> None:
    """Say that nobody minds what went wrong."""
    if not future.cancelled():
        future.exception()


def room_of(state: dict[str, Any], setting: str) -> MetastableError | None:
    """Why a worker in this state would refuse a setting; None where it would not, or does not say."""
    refused = state.get("settings", {}).get(setting, {}).get("refused")
    return None if refused is None else error_of(refused["code"], refused["message"], refused["retry_after"])


def cheapest(state: dict[str, Any]) -> str:
    """The setting of the lowest price."""
    prices: dict[str, float] = {name: one["price"] for name, one in state["settings"].items()}
    return min(prices, key=prices.__getitem__)
