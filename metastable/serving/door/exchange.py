"""One request with its answer, and how reading is held back meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import CLOSE_HEADER, FlowControl
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from metastable.serving.door.refusals import Refusal
from metastable.serving.faults import report

_BROKEN = Refusal(500, "internal", "something is wrong with this server, not with what was sent")
_STOPPED = Refusal(503, "draining", "the server stopped before there was an answer: ask again", 5.0)


class Flow(FlowControl):
    """uvicorn's, with the time in which nothing was read for the application's sake.

    While it is `held`, uvicorn's cycle cannot resume reading.
    """

    def __init__(self, transport: asyncio.Transport, clock: Callable[[], float]) -> None:
        super().__init__(transport)
        self._clock = clock
        self._since = self._before = 0.0
        self.held = False

    @property
    def paused_seconds(self) -> float:
        """In all, up to now."""
        return self._before + (self._clock() - self._since if self.read_paused else 0.0)

    def pause_reading(self) -> None:
        if not self.read_paused:
            self._since = self._clock()
        super().pause_reading()

    def resume_reading(self) -> None:
        if not self.held:
            self._before = self.paused_seconds
            super().resume_reading()

    def hold(self) -> None:
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        self.held = False
        self.resume_reading()


class Outlet:
    """A transport as an exchange sees it: how it is closed is left to the protocol."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, close


class Exchange(RequestResponseCycle):
    """uvicorn's cycle, with answers of our own where the application gives none.

    Attributes:
        last: says whether the connection ends after this answer.
        begin_body: called when the client is told to send its body.
        left: whether the client has probably gone: the application is told so, and may still answer.
    """

    def __init__(self, *, last: Callable[[], bool], begin_body: Callable[[], None], **given: Any) -> None:
        super().__init__(**given)
        self.last, self.begin_body = last, begin_body
        self.left = False

    @property
    def _id(self) -> object:
        """For the log: of harmless characters, whoever chose them."""
        return self.scope["state"].get("request_id")

    def leave(self, sure: bool) -> None:
        """Tell the application that the client is gone; if that is sure, nothing more is sent."""
        self.left = True
        self.disconnected = self.disconnected or sure
        self.message_event.set()

    async def run_asgi(self, app: ASGIApp) -> None:  # type: ignore[override]
        try:
            await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]
            if not (self.response_complete or self.disconnected or self.left):
                report(f"request {self._id} got no whole answer", None)
        except asyncio.CancelledError:
            await self._instead(_STOPPED)
        except ClientDisconnect:
            pass  # as Starlette ends the reading of a body
        except Exception as error:
            report(f"request {self._id} failed", error)
        finally:
            await self._instead(_BROKEN)
            self.on_response = lambda: None

    async def _instead(self, refusal: Refusal) -> None:
        """The answer if there is none yet; an answer that broke off ends the connection."""
        if self.response_complete or self.disconnected:
            return
        if self.response_started or self.left:
            self.disconnected = True
            self.transport.close()
            return
        self.keep_alive = False
        await refusal(self.scope, self.receive, self.send)  # type: ignore[arg-type]

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and (self.last() or not self.keep_alive):
            headers = [(key, value) for key, value in message.get("headers", ()) if key != CLOSE_HEADER[0]]
            message = {**message, "headers": [*headers, CLOSE_HEADER]}
        await super().send(message)

    async def receive(self) -> Any:
        if self.left:
            return {"type": "http.disconnect"}
        if self.waiting_for_100_continue:
            self.begin_body()
        message = await super().receive()
        return {"type": "http.disconnect"} if self.left else message
