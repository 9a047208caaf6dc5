"""A real HTTP server for tests, in a thread of its own, whose every reply is written down byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def verdict(label: int = 3, **changes: Any) -> dict[str, Any]:
    """What a real server says of an image."""
    return {
        "label": label,
        "class": f"class {label}",
        "top": [{"label": label, "class": f"class {label}", "probability": 0.8}],
        "margin": {"value": 2.5, "standard_error": 0.1, "of": "logits", "runner_up": "class 4"},
        "setting": "fast",
        "chains": 4,
        "steps": 1.0,
        "decided": True,
        "delta": 0.01,
        "late": False,
        "unpurified": {"label": 0, "class": "class 0"},
        "anomaly": {
            "score": 0.2,
            "threshold": 0.25,
            "false_positive_rate": 0.05,
            "flagged": False,
            "shift": {"value": 0.1, "threshold": None, "false_positive_rate": None, "flagged": None},
        },
        "image": {"format": "PNG", "original_size": [32, 30], "resized": True, "notes": ["resized"]},
        "model": {"name": "toy", "version": "1", "digest": "d" * 64},
        "runner": "test",
        "request_id": "r-1",
        "timings_ms": {"queue": 1.0, "purify": 2.0, "classify": 1.0, "total": 4.0},
    } | changes


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Act:
    """What is done with a request.

    Attributes:
        data: sent as it is.
        pace: seconds between two bytes of `data`; None sends it at once.
        then: keep the connection, close it, reset it, or say nothing more for ever.
    """

    data: bytes = b""
    pace: float | None = None
    then: Literal["keep", "close", "reset", "hang"] = "keep"


def reply(status: str = "200 OK", said: Any = None, headers: str = "", *, length: int | None = None) -> bytes:
    """A reply; `said` is sent as it is if it is bytes, as JSON if not.  `headers` are lines with CRLF."""
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


GOOD = Act(reply(said=verdict()))


def refusing(status: str = "503 Service Unavailable", headers: str = "", code: str = "overloaded") -> Act:
    """The server's own error."""
    said = {"error": {"code": code, "message": "try again"}, "request_id": "r-9"}
    return Act(reply(status, said, headers))


@dataclass
class Served:
    """A server at `url`: what it has seen."""

    url: str = ""
    seen: list[Request] = field(default_factory=list)
    connections: int = 0


@contextlib.contextmanager
def serving(*acts: Act | Callable[[Request], Act]) -> Iterator[Served]:
    """A server that does one of `acts` with each request in order of arrival, the last one for ever."""
    served = Served()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        while True:
            request = await read(reader)
            served.seen.append(request)
            act = acts[min(len(served.seen), len(acts)) - 1]
            if callable(act):
                act = act(request)
            await send(writer, act)
            if act.then == "hang":
                await asyncio.sleep(3600)
            if act.then == "reset":
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if act.then != "keep":
                return

    with listening(connection) as served.url:
        yield served


async def send(writer: asyncio.StreamWriter, act: Act) -> None:
    if act.pace is None:
        writer.write(act.data)
    for byte in act.data if act.pace is not None else b"":
        writer.write(bytes([byte]))
        await asyncio.sleep(act.pace or 0)
    await writer.drain()


async def read(reader: asyncio.StreamReader) -> Request:
    """The next request of a connection; IncompleteReadError where there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    method, path, _ = head[0].split()
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body)


@contextlib.contextmanager
def listening(connection: Connection) -> Iterator[str]:
    """A server in a thread of its own that treats every connection so; gives its address."""
    ready, address = threading.Event(), []
    stopping: list[Callable[[], Any]] = []
    under_way: set[asyncio.Task[Any]] = set()

    async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await connection(reader, writer)
        under_way.discard(task)
        writer.close()

    async def live() -> None:
        server = await asyncio.start_server(treat, "127.0.0.1", 0)
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        stopping.append(lambda: loop.call_soon_threadsafe(end.set))
        address.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ready.set()
        await end.wait()
        server.close()
        for task in under_way:
            task.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    assert ready.wait(30)
    try:
        yield address[0]
    finally:
        stopping[0]()
        thread.join(30)
