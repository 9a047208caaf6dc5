"""Who is told of every request once it has been answered: the log, and whoever collects spans.

observer = Observer(tracing)                 # None for no spans
server.run(app, ..., observer=observer)      # puts `Observed` around everything
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metastable.errors import Cancelled, Draining, MetastableError
from metastable.serving.door import identity
from metastable.serving.door.access import FREE
from metastable.serving.door.accounts import Account, line

if TYPE_CHECKING:
    from metastable.serving.tracing import Tracing

log = logging.getLogger("metastable.serving.requests")

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE"})
"""Any other is a client's text, and told as `other`."""


class Observer:
    """Begins and ends accounts; one for a server.

    Args:
        tracing: makes spans of them.
    """

    def __init__(self, tracing: Tracing | None = None) -> None:
        self._tracing = tracing

    def begin(self, scope: Scope) -> Account:
        account = Account(time.monotonic(), identity.traceparent(scope["headers"]))
        if self._tracing is not None:
            account.trace = self._tracing.begin(account.traceparent, account.received)
            account.traceparent = self._tracing.traceparent(account.trace, account.traceparent)
        return account

    def end(self, scope: Scope, account: Account) -> None:
        """Tell what was noted, once there is nothing to add."""
        ended = time.monotonic()
        if account.code is None:
            account.code = "ok" if (account.status or 500) < 400 else "other"
        route = scope.get("route")
        account.route = getattr(route, "path", None)
        method = scope["method"] if scope["method"] in METHODS else "other"
        level = logging.DEBUG if scope["path"] in FREE else level_of(account.status)
        if log.isEnabledFor(level):
            request_id = scope["state"].get("request_id")
            log.log(level, "request", extra={"fields": line(account, method, request_id, ended)})
        if account.trace is not None:
            account.trace.end(account, method, ended)

    def refused(self, status: int, code: str) -> None:
        """Tell of what was refused before it was a request."""
        log.log(level_of(status), "refused", extra={"fields": {"status": status, "code": code}})


class Observed:
    """Middleware: an account of every request, as `account` in the scope's state."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self.app, self.observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        state = scope.setdefault("state", {})
        account = state["account"] = self.observer.begin(scope)
        if (refusal := state.get("refusal")) is not None:  # the connection has ended already
            account.refuse(refusal.status, refusal.code)

        async def read() -> Message:
            message = await receive()
            if message["type"] == "http.request" and account.whole is None:
                account.bytes_in += len(message.get("body", b""))
                if not message.get("more_body", False):
                    account.whole = time.monotonic()
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and not account.cut:
                account.status = message["status"]
            await send(message)

        try:
            await self.app(scope, read, answer)
        except BaseException as error:
            if not account.cut:
                account.status, account.code = _ended_by(error, account.status)
            raise
        finally:
            self.observer.end(scope, account)


def level_of(status: int | None) -> int:
    """Of the line about an answer: an error is a fault of the server, a warning what it could not take."""
    if status is None or status < 500:
        return logging.INFO
    return logging.ERROR if status == MetastableError.status else logging.WARNING


def _ended_by(error: BaseException, status: int | None) -> tuple[int | None, str]:
    """Status and code of a request that ended so: the status that was sent, if one was."""
    if isinstance(error, asyncio.CancelledError):
        return status or Draining.status, Draining.code
    if isinstance(error, ClientDisconnect):
        return status or Cancelled.status, Cancelled.code
    return status or MetastableError.status, MetastableError.code
