"""A small ASGI application behind the real server, and clients on bare sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from metastable.serving.door import server
from metastable.serving.door.limits import Limits
from metastable.serving.door.stopping import Stop

PATIENCE = 30.0
"""Seconds for what must happen; a busy machine is slow, a fault is for ever."""
MOST = 2_000_000


class Small:
    """Answers a few paths; see `_answer`.

    Attributes:
        left: counts clients that left, and `entered` requests that came; `seen` has their scopes.
        opened: what /wait and /later wait for.
        ended: whether it was told to end.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.left = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.seen: list[Scope] = []
        self.ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.ended = True
            return await send({"type": "lifespan.shutdown.complete"})
        self.seen.append(scope)
        self.entered.release()
        await self._answer(scope["path"], scope, receive, send)

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = 200, b""
        if path == "/readyz":
            status = 503 if self.stop.draining else 200
        elif path == "/echo":
            body = await _whole(receive)
        elif path == "/limited":
            status = 200 if len(await _whole(receive, MOST)) <= MOST else 413
        elif path == "/refused":
            status = 503
        elif path in ("/wait", "/later"):
            while not self.opened.is_set():
                await asyncio.sleep(0.01)
            body = await _whole(receive) if path == "/later" else b""
        elif path == "/hang":
            while (await receive())["type"] != "http.disconnect":
                pass
            return self.left.release()
        elif path == "/boom":
            raise ValueError("a client wrote\n" + scope["query_string"].decode())
        elif path in ("/half", "/flood"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            if path == "/half":
                raise ValueError("in the middle")
            for _ in range(1000):
                await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        elif path == "/silent":
            return
        elif path != "/livez":
            status = 404
        text = json.dumps({"path": path, "bytes": len(body), "request_id": scope["state"]["request_id"]})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


async def _whole(receive: Receive, most: int | None = None) -> bytes:
    body, more = b"", True
    while more and (most is None or len(body) <= most):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message["body"]
        more = message["more_body"]
    return body


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes
    interim: list[int] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        assert self.fields["content-type"] == "application/json"
        return str(self.json["error"]["code"])


class Client:
    """A connection on which bytes are sent and answers read."""

    def __init__(self, address: tuple[str, int] | str, source: str = "127.0.0.1") -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, PATIENCE, (source, 0))
        self.socket.settimeout(PATIENCE)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def end(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def get(self, path: str, *fields: str) -> Answer:
        self.send(request("GET", path, *fields))
        return self.answer()

    def post(self, path: str, body: bytes, *fields: str) -> Answer:
        self.send(request("POST", path, f"Content-Length: {len(body)}", *fields) + body)
        return self.answer()

    def answer(self, head_only: bool = False) -> Answer:
        """The next answer; those with 1xx before it are noted in it."""
        line = self.file.readline()
        assert line, "the connection was closed without an answer"
        status = int(line.split()[1])
        fields: dict[str, str] = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(":")
            assert name.lower() not in fields, f"{name} twice"
            fields[name.lower()] = value.strip()
        if status < 200:
            final = self.answer(head_only)
            final.interim.insert(0, status)
            return final
        size = 0 if head_only else int(fields.get("content-length", 0))
        return Answer(status, fields, self.file.read(size))

    def rest(self) -> bytes:
        """All until the server closes; a reset counts as that."""
        with contextlib.suppress(ConnectionError):
            return self.file.read()
        return b""


def request(method: str, path: str, *fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: here", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@dataclass
class Served:
    app: Small
    stop: Stop
    address: Any
    status: list[int]
    thread: threading.Thread

    def client(self, source: str = "127.0.0.1") -> Client:
        return Client(self.address, source)

    def lives(self) -> bool:
        with self.client() as client:
            return client.get("/livez").status == 200

    def finish(self) -> int:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.status[0]


@contextlib.contextmanager
def serving(limits: Limits | None = None, **given: Any) -> Iterator[Served]:
    """A server in a thread; it is stopped at once at the end."""
    stop, ready, status = Stop(), threading.Event(), []
    app, where = Small(stop), []

    def on_ready(url: str) -> None:
        where.append(url)
        ready.set()

    def live() -> None:
        try:
            status.append(server.run(app, stop=stop, port=0, limits=limits, on_ready=on_ready, **given))
        finally:
            ready.set()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    assert ready.wait(PATIENCE)
    assert where, "the server did not start"
    kind, _, rest = where[0].partition(":")
    host, _, port = rest.strip("/").rpartition(":")
    address = rest if kind == "unix" else (host.strip("[]"), int(port))
    try:
        yield Served(app, stop, address, status, thread)
    finally:
        app.opened.set()
        stop.ask(grace=False)
        stop.ask()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not end"
