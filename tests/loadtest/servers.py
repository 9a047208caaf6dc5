"""A small HTTP server for tests that can misbehave, and images whose answer is known.

The class that the server answers is written in an image's first pixel and its score in the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest import items
from loadtest.items import Item

CLASSES = 10


def image(says: int, score: float = 0.0) -> np.ndarray:
    """float32 [3, 4, 4] for which a test server answers the class `says` and the score."""
    pixels = np.zeros((3, 4, 4), np.float32)
    pixels[0, 0, :2] = says / 100, score
    return pixels


def item(says: int, label: int, *, source: str = "clean", row: int = 0, score: float = 0.0) -> Item:
    return Item(items.npy(image(says, score)), label, source, row, row)


def verdict(body: bytes, setting: str) -> dict[str, Any]:
    """What the real server would say, as far as a client reads it."""
    pixels = np.load(io.BytesIO(body), allow_pickle=False)
    says, score = round(100 * float(pixels[0, 0, 0])), float(pixels[0, 0, 1])
    return {
        "label": says,
        "setting": setting,
        "chains": 4,
        "steps": 1.0,
        "decided": True,
        "late": False,
        "unpurified": {"label": 0},
        "anomaly": {"score": score, "flagged": score > 0.5},
        "model": {"name": "toy", "version": "1", "digest": "d" * 64},
        "runner": "test",
        "timings_ms": {"queue": 1.0, "purify": 2.0, "classify": 1.0, "total": 4.0},
    }


@dataclass
class Behaviour:
    """How a server answers.

    Attributes:
        service: seconds that each request keeps the server, one after the other.
        stall: (after so many requests, for so many seconds) the server does nothing at all.
        reply: (status line, body) instead of a verdict; raw: bytes instead of HTTP.
        silent: never answer; hang_up: close the connection instead.
        seen: how many requests are being served at the same time, taken at each arrival.
    """

    service: float = 0.0
    stall: tuple[int, float] = (-1, 0.0)
    reply: tuple[str, bytes] | None = None
    raw: bytes | None = None
    silent: bool = False
    hang_up: bool = False
    setting: str = ""
    seen: list[int] = field(default_factory=list)


class _Server:
    def __init__(self, behaviour: Behaviour) -> None:
        self._how, self._turn, self._count, self._inside = behaviour, asyncio.Lock(), 0, 0
        self._open: set[asyncio.Task[Any]] = set()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await self._request(reader, writer):
                pass
        self._open.discard(task)
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        headers = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
        body = await reader.readexactly(int(headers["content-length"]))
        self._inside += 1
        self._how.seen.append(self._inside)
        try:
            async with self._turn:
                count, self._count = self._count, self._count + 1
                await asyncio.sleep(self._how.service)
                if count == self._how.stall[0]:
                    await asyncio.sleep(self._how.stall[1])
        finally:
            self._inside -= 1
        if self._how.silent:
            await asyncio.sleep(3600)
        if self._how.hang_up:
            return False
        if self._how.raw is not None:
            writer.write(self._how.raw)
            return False
        setting = self._how.setting or headers.get("x-metastable-setting", "default")
        said = json.dumps(verdict(body, setting)).encode()
        status, answer = self._how.reply or ("200 OK", said)
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
        await writer.drain()
        return True

    def stop(self) -> None:
        for task in self._open:
            task.cancel()


@contextlib.contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """A server in a thread of its own; gives its address."""
    ready, address = threading.Event(), []
    stopping: list[Callable[[], Any]] = []

    async def live() -> None:
        inside = _Server(behaviour)
        server = await asyncio.start_server(inside.connection, "127.0.0.1", 0)
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        stopping.append(lambda: loop.call_soon_threadsafe(end.set))
        address.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ready.set()
        await end.wait()
        server.close()
        inside.stop()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    assert ready.wait(30)
    try:
        yield address[0]
    finally:
        stopping[0]()
        thread.join(30)
