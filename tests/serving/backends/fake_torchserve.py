"""A TorchServe that does as it is told, and a worker's control channel that notes what it was told."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlers.control import Control
from metastable.errors import Overloaded
from metastable.images import Fit, decode
from metastable.serving.backends.base import Question, Served
from metastable.serving.backends.torchserve import TorchServe
from metastable.serving.control import described, refusal
from metastable.serving.options import RequestOptions

SERVED = Served(
    name="tiny",
    version="1",
    digest="d",
    shape=(3, 4, 4),
    fit=Fit(),
    classes=("a", "b"),
    settings=("fast", "none"),
    default="fast",
    allow_seed=True,
    runner="torch",
)
VERDICT = {
    "label": 1,
    "image": {"format": "NPY", "original_size": [4, 4], "resized": False, "notes": []},
    "request_id": "inner",
    "timings_ms": {
        "decode": 1.0,
        "anomaly": 2.0,
        "queue": 3.0,
        "purify": 4.0,
        "classify": 5.0,
        "total": 99.0,
    },
}
Answer = tuple[int, dict[str, str], bytes] | None
Behaviour = Callable[[dict[str, str], bytes], Awaitable[Answer]]


async def answers(headers: dict[str, str], body: bytes) -> Answer:
    return 200, {"content-type": "application/json"}, json.dumps(VERDICT).encode()


def says(status: int, said: object, **headers: str) -> Behaviour:
    """Always the same; what is no text is sent as JSON."""

    async def behaviour(_: dict[str, str], __: bytes) -> Answer:
        data = said if isinstance(said, str) else json.dumps(said)
        return status, {k.replace("_", "-"): v for k, v in headers.items()}, data.encode()

    return behaviour


async def resets(headers: dict[str, str], body: bytes) -> Answer:
    return None


class FakeTorchServe:
    """HTTP/1.1 on a unix socket; `behaviour` answers, or breaks the connection off by None."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = answers
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.raw: bytes | None = None  # what it sends in the place of an answer, before it leaves
        self.inside = self.most_inside = 0
        self._connections: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # either side has left; a cancelled handler would be logged as a failure
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        assert first == "POST /predictions/metastable HTTP/1.1"
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers["content-length"]))
        self.seen.append((headers, body))
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        try:
            answer = await self.behaviour(headers, body)
        finally:
            self.inside -= 1
        if answer is None:
            return False
        if self.raw is not None:
            writer.write(self.raw)
            return False
        status, more, data = answer
        head = [
            f"HTTP/1.1 {status} x",
            f"content-length: {len(data)}",
            *(f"{k}: {v}" for k, v in more.items()),
        ]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + data)
        await writer.drain()
        return True


class FakeDoor:
    """What a worker's control channel stands on; the calls of a kind are its `told`."""

    def __init__(self, window: int = 64) -> None:
        self.window = window
        self.told: dict[str, list[str]] = {"admit": [], "release": [], "cancel": []}
        self.full: Overloaded | None = None
        self.backlog = 0.0

    def describe(self) -> dict[str, Any]:
        return {"served": described(SERVED), "window": self.window}

    def admit(self, setting: str, owner: object) -> dict[str, Any]:
        if self.full is not None:
            raise self.full
        token = f"token-{len(self.told['admit'])}"
        self.told["admit"].append(token)
        return {"token": token, "backlog": self.backlog}

    def release(self, token: str) -> None:
        self.told["release"].append(token)

    def cancel(self, job: str) -> None:
        self.told["cancel"].append(job)

    def disown(self, owner: object) -> None: ...

    def state(self) -> dict[str, Any]:
        refused = None if self.full is None else refusal(self.full)
        prices = {"fast": 1.0, "none": 0.1}
        settings = {name: {"price": price, "refused": refused} for name, price in prices.items()}
        return {"backlog": self.backlog, "out": 0, "settings": settings}


class World:
    """A backend on a fake TorchServe and a fake worker, in `folder`."""

    def __init__(self, folder: Path, door: FakeDoor) -> None:
        self.door, self.server = door, FakeTorchServe()
        self._socket, self._folder = folder / "inference.sock", folder / "control"
        self._folder.mkdir()
        self.backend = TorchServe(self._socket, self._folder)
        self._control: Control | None = None

    async def listen(self) -> None:
        await self.server.listen(self._socket)

    def worker(self) -> None:
        self._control = Control(self._folder, self.door)  # type: ignore[arg-type]

    async def until(self, seen: Callable[[], object]) -> None:
        """Wait for it, up to a time that only a fault takes."""
        async with asyncio.timeout(60):
            while not seen():
                await asyncio.sleep(0.01)

    async def __aenter__(self) -> World:
        await self.backend.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.close(0.0)
        await self.server.stop()
        if self._control is not None:
            await asyncio.to_thread(self._control.close)


@asynccontextmanager
async def running(folder: Path, door: FakeDoor | None = None) -> AsyncIterator[World]:
    """A world whose backend is ready."""
    async with World(folder, door or FakeDoor()) as world:
        await world.listen()
        world.worker()
        await world.until(lambda: world.backend.ready)
        world.server.seen.clear()
        yield world


def asked(setting: str = "fast", deadline: float | None = None, seed: int | None = None) -> Question:
    """One of a picture of 8 x 6 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)).save(buffer, "PNG")
    return Question("q", decode(buffer.getvalue(), size=4), RequestOptions(setting, 2, None, seed), deadline)
