"""HTTP/1.1 on one connection: uvicorn's protocol on h11, with deadlines, bounds and an orderly end.

uvicorn waits for ever for the rest of a request, and for the first byte of a connection.  Here the first
byte, the head and the body have deadlines, which are off while an answer is computed.  What is refused
while its body still comes is read and dropped for a while: closing at once would reset the connection, and
the client would lose the answer.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast
from urllib.parse import unquote

import h11
from starlette.types import ASGIApp

from metastable.errors import MalformedRequest, TooSlow
from metastable.serving.door import identity, targets
from metastable.serving.door.access import FREE
from metastable.serving.door.ending import EndingProtocol
from metastable.serving.door.exchange import Exchange, Outlet
from metastable.serving.door.gate import Gate
from metastable.serving.door.half_closed import Watch
from metastable.serving.door.limits import Limits
from metastable.serving.door.observing import Observed
from metastable.serving.door.refusals import Refusal
from metastable.serving.door.stopping import Stop

AHEAD = 65536
"""Bytes that are read of requests sent before the answer to the one in front of them."""
HEARING_SECONDS = 2.0
"""Until the head of a request is whole on a connection that is one too many."""
SMALL = 64

_INVALID = Refusal.of(MalformedRequest("this is not valid HTTP/1.1"))
_CUT = Refusal.of(MalformedRequest("the request ended before it was whole"))
_CHUNKS = Refusal.of(MalformedRequest(f"send larger chunks: these have less than {SMALL} bytes each"))
_LATE = Refusal.of(TooSlow("the request did not come in time: send it faster, or over a new connection"))


class DoorProtocol(EndingProtocol):
    """See the module; one object a connection."""

    def __init__(self, *, limits: Limits, gate: Gate, stop: Stop, **given: Any) -> None:
        super().__init__(limits=limits, **given)
        self.gate, self.stop = gate, stop
        self._watch: Watch | None = None
        self._fresh = True  # no byte of a request has come
        self._head_too_large = Refusal(
            431, "head_too_large", f"the head of a request may have {limits.head_bytes} bytes"
        )

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.entry = self.gate.enter(self.client)
        refusal = self.entry.refusal
        if refusal is None:
            self._arm(self.limits.idle_seconds, self._close)
        elif self.entry.heard:
            self._fresh = False  # its deadline stays
            self._arm(min(HEARING_SECONDS, self.limits.head_seconds), lambda: self._refuse(refusal))
        else:
            self._tell(refusal, {})
            transport.write(refusal.wire(self.server_state.default_headers, None, False))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.end()
        self.gate.leave(self.entry)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return self._drop(data)
        if self._fresh:
            self._begin_head()
        self._received += data
        self._parse()
        if len(self._received) > AHEAD and not self._ending:
            self.flow.hold()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open for an answer."""
        if self._ending:
            return False
        if self._half:
            return True
        self._half = True
        if self._whole:
            self._watch = Watch(self.transport, self._probe, self.transport.abort)
            return True
        if not self._fresh:
            self._refuse(_CUT)
        return False

    # What the server calls

    def shutdown(self) -> None:
        if self._fresh and not self._ending:
            self._close()

    # Requests

    @property
    def _whole(self) -> bool:
        """Whether there is a request, and only its answer is missing."""
        return self._answering and not cast(Exchange, self.cycle).more_body

    def _begin_head(self) -> None:
        self._fresh = False
        self._arm(self.limits.head_seconds, lambda: self._refuse(_LATE))

    def _parse(self) -> None:
        """Give h11 what it can use, heads in pieces: it bounds what is not whole, and parses the rest."""
        while self._received and not self._ending:
            if self.conn.their_state is h11.IDLE:
                size = self.limits.head_bytes
            elif self.conn.their_state is h11.SEND_BODY:
                size = len(self._received)
            else:
                return
            piece = bytes(self._received[:size])
            del self._received[:size]
            self.conn.receive_data(piece)
            self.handle_events()

    def handle_events(self) -> None:
        while not self._ending:
            try:
                event = self.conn.next_event()
            except h11.RemoteProtocolError as error:
                return self._refuse(self._head_too_large if error.error_status_hint == 431 else _INVALID)
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._take(event)
            elif isinstance(event, h11.EndOfMessage):
                exchange = cast(Exchange, self.cycle)
                exchange.more_body = False
                exchange.message_event.set()
                return self._disarm()
            else:
                return

    def _begin(self, request: h11.Request) -> None:
        self._disarm()
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self.limits.head_bytes:
            return self._refuse(self._head_too_large)
        target, answer = targets.read(request)
        raw_path, _, query = target.partition(b"?")
        path = unquote(raw_path.decode("ascii"))
        if answer is None and path not in FREE:
            answer = self.entry.refusal
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "method": request.method.decode("ascii"),
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": list(request.headers),
            "state": self.app_state.copy(),
        }
        self._body, self._chunks, self._body_since = 0, 0, -1.0
        exchange = self.cycle = Exchange(
            last=self._last,
            begin_body=self._begin_body,
            scope=self.scope,
            conn=self.conn,
            transport=cast(asyncio.Transport, Outlet(self.transport, self._end)),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )
        if not exchange.waiting_for_100_continue:
            self._begin_body()
        app = cast(Any, self.app) if answer is None else self._observed(identity.Named(answer))
        task = self.loop.create_task(exchange.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _observed(self, app: ASGIApp) -> ASGIApp:
        return app if self.observer is None else Observed(app, self.observer)

    def _last(self) -> bool:
        more = cast(Exchange, self.cycle).more_body
        return more or self.stop.draining or self.entry.refusal is not None

    def _begin_body(self) -> None:
        self._body_since = self.loop.time() - self.flow.paused_seconds
        self._arm(self.limits.body_seconds, self._check_body)

    def _check_body(self) -> None:
        spent = self.loop.time() - self.flow.paused_seconds - self._body_since
        left = self.limits.body_seconds + self._body / self.limits.body_rate - spent
        if self.flow.read_paused or left > 0:
            self._arm(self.limits.body_seconds if self.flow.read_paused else left, self._check_body)
        else:
            self._refuse(_LATE)

    def _take(self, event: h11.Data) -> None:
        exchange = cast(Exchange, self.cycle)
        if self._body_since < 0:  # it did not wait for 100 Continue
            self._begin_body()
        self._body += len(event.data)
        self._chunks += event.chunk_start
        if self._chunks > self.limits.chunks and self._body < SMALL * self._chunks:
            return self._refuse(_CHUNKS)
        exchange.body += event.data
        if len(exchange.body) > AHEAD:
            self.flow.pause_reading()
        exchange.message_event.set()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._ending or self.transport.is_closing():
            return
        self.conn.start_next_cycle()
        self._fresh = True
        self._arm(self.limits.idle_seconds, self._close)
        if self._received or self.conn.trailing_data[0]:
            self._begin_head()
        self.flow.release()
        self.handle_events()
        self._parse()
        if self._half and not self._ending and not self._whole:
            self._close() if self._fresh else self._refuse(_CUT)

    def _probe(self) -> None:
        """Send something to a client that has ended its side, if it may be sent."""
        if not self._answering or self.client is None:  # a Unix socket tells by itself
            return
        exchange = cast(Exchange, self.cycle)
        if self.scope["http_version"] == "1.0":  # knows no 100 Continue
            exchange.leave(sure=False)
        elif not exchange.response_started:
            self.transport.write(
                self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
            )
