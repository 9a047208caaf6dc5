"""Run an ASGI application on a port or a Unix socket until a signal, and end in order.

    stop = Stop()
    run(application(stop), stop=stop, host="127.0.0.1", port=8080)

Asked to stop, by SIGTERM, SIGINT or (unless it is to mean something else) SIGHUP, the server is not ready
any more, refuses new requests, and for
`grace_seconds` still accepts connections, so that proxies see it.  Running answers get `drain_seconds`.
A second signal ends at once.  Nothing of uvicorn's is logged; faults are, by `faults.report`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.lifespan.on import LifespanOn

from metastable.errors import SettingsError
from metastable.serving.door import shell, sockets
from metastable.serving.door.access import Keys
from metastable.serving.door.clients import Proxies
from metastable.serving.door.gate import Gate
from metastable.serving.door.limits import Limits
from metastable.serving.door.observing import Observer
from metastable.serving.door.protocol import DoorProtocol
from metastable.serving.door.stopping import Stop
from metastable.serving.faults import report

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TICK = 0.05
LAST_SECONDS = 1.0
"""For what was told to end at once."""
_SILENT = logging.CRITICAL + 1


class _Kept:
    """Keeps what the application raised while it started, which uvicorn would only log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            if scope["type"] == "lifespan":
                self.failure = error
            raise


class _Early(Exception):
    """A stop was asked for before the application had started."""


class _Failed(Exception):
    """The application did not start."""


class _Lifespan(LifespanOn):
    """uvicorn's; it raises where uvicorn would raise SystemExit in a task, after which CPython 3.11 cannot
    compile anything any more (SystemError: AST constructor recursion depth mismatch)."""

    async def startup(self) -> None:
        await super().startup()
        if self.should_exit:
            raise _Failed


class _Server(uvicorn.Server):
    """uvicorn's, without its signals, and stopping as the module says."""

    def __init__(
        self,
        config: uvicorn.Config,
        stop: Stop,
        grace_seconds: float,
        drain_seconds: float,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.stop, self.grace, self.drain, self.ready = stop, grace_seconds, drain_seconds, ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_report)
        starting = asyncio.ensure_future(super().startup(sockets))
        while not starting.done() and not self.stop.draining:
            await asyncio.wait([starting], timeout=TICK)
        if not starting.done():
            starting.cancel()
            raise _Early
        await starting
        self.ready()

    async def on_tick(self, counter: int) -> bool:
        grace = min(self.grace, self.drain) if self.stop.grace else 0.0
        over = self.stop.draining and self.stop.passed() >= grace
        return await super().on_tick(counter) or over or self.stop.at_once

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        while state.tasks and not self.stop.at_once and self.stop.passed() < self.drain:
            await asyncio.sleep(TICK)
        for task in state.tasks:
            task.cancel()
        await self._while(lambda: bool(state.tasks))
        for connection in list(state.connections):
            connection.transport.close()
        await self._while(lambda: bool(state.connections))
        for connection in list(state.connections):
            connection.transport.abort()
        ending = asyncio.ensure_future(self.lifespan.shutdown())
        while not ending.done() and not self.stop.at_once:
            await asyncio.sleep(TICK)
        await self._while(lambda: not ending.done())

    async def _while(self, busy: Callable[[], bool]) -> None:
        """Wait for what ends by itself now, but not long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LAST_SECONDS
        while busy() and loop.time() < until:
            await asyncio.sleep(TICK)


def run(
    app: ASGIApp,
    *,
    stop: Stop,
    host: str = "127.0.0.1",
    port: int = 8080,
    uds: Path | None = None,
    limits: Limits | None = None,
    keys: Keys | None = None,
    proxies: Proxies | None = None,
    origins: Sequence[str] = (),
    observer: Observer | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
    on_hangup: Callable[[], None] | None = None,
    grace_seconds: float = 1.0,
    drain_seconds: float = 30.0,
) -> int:
    """Serve until a stop is asked for; the exit status, 0.

    `uds`: the path of a Unix socket, instead of host and port.  `port` 0 is a free one.
    `observer`: is told of every request, and of what is refused before it is one.
    `on_hangup`: called in the main thread at SIGHUP, which then stops nothing; it must not raise.
    `on_ready`: called with `http://ADDRESS:PORT` or `unix:PATH` once connections are accepted.

    Raises SettingsError where the address cannot be used or the machine allows too few open files, and what
    the application raises while it starts.
    """
    limits, proxies = limits or Limits(), proxies or Proxies()
    sockets.allow_files(limits)
    with _handled(stop, on_hangup), sockets.bound(host, port, uds) as (listener, url):
        around = {"keys": keys, "proxies": proxies, "origins": origins, "observer": observer}
        kept = _Kept(shell.wrap(app, stop=stop, limits=limits, **cast(Any, around)))
        protocol = functools.partial(
            DoorProtocol, limits=limits, gate=Gate(limits, proxies), stop=stop, observer=observer
        )
        config = uvicorn.Config(
            cast(Any, kept),
            http=cast(Any, protocol),
            ws="none",
            loop="asyncio",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            log_level=_SILENT,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=limits.backlog,
            h11_max_incomplete_event_size=limits.head_bytes,
        )
        config.load()
        config.lifespan_class = _Lifespan
        server = _Server(config, stop, grace_seconds, drain_seconds, lambda: on_ready(url))
        try:
            with contextlib.suppress(_Early):
                asyncio.run(server.serve([listener]))
        except _Failed:
            raise kept.failure or RuntimeError("the application did not start, and raised nothing") from None
        except OSError as error:  # of listen(2), where another server began to listen after both had bound
            raise SettingsError(f"{url} cannot be listened on: {error.strerror or error}") from None
    return 0


@contextlib.contextmanager
def _handled(stop: Stop, on_hangup: Callable[[], None] | None) -> Iterator[None]:
    """Let signals ask for a stop, where they can be handled.  Ctrl-C needs no grace: somebody waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and on_hangup is not None:
            on_hangup()
        else:
            stop.ask(grace=number != signal.SIGINT)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio would log the message of an exception, and with it perhaps a client's text."""
    report("something failed outside of a request", context.get("exception"))
