"""The name of a request: an id of its own, and the trace that it belongs to."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# https://www.w3.org/TR/trace-context/: a later version may have more after these four.
_TRACE = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[!-~]{1,128})?")


def field(headers: Headers, name: bytes) -> bytes | None:
    """The value of a header field that is there exactly once; None otherwise."""
    values = [value for key, value in headers if key == name]
    return values[0] if len(values) == 1 else None


def request_id(headers: Headers) -> str:
    """The client's X-Request-Id if it is 1 to 128 of A-Za-z0-9._-, else a fresh random one."""
    given = field(headers, b"x-request-id")
    return given.decode() if given is not None and _ID.fullmatch(given) else secrets.token_hex(16)


def traceparent(headers: Headers) -> str | None:
    """The client's traceparent if it is valid."""
    given = field(headers, b"traceparent")
    found = _TRACE.fullmatch(given) if given is not None else None
    if found is None or found[1] == b"ff" or not found[2].strip(b"0") or not found[3].strip(b"0"):
        return None
    return None if found[1] == b"00" and found[4] else found[0].decode()


def name(scope: Scope) -> Headers:
    """Put `request_id` and `traceparent` (or None) into the scope's state; the fields that echo them."""
    state = scope.setdefault("state", {})
    state["request_id"] = request_id(scope["headers"])
    state["traceparent"] = traceparent(scope["headers"])
    return echo(state)


def echo(state: dict[str, str | None]) -> Headers:
    """Header fields of an answer to the request of this state; none before it has a name."""
    pairs = [("x-request-id", state.get("request_id")), ("traceparent", state.get("traceparent"))]
    return [(key.encode(), value.encode()) for key, value in pairs if value is not None]


class Named:
    """Middleware: names every request, and says the name in every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        names = name(scope)
        keys = {key for key, _ in names}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [(key, value) for key, value in message["headers"] if key.lower() not in keys]
                message = {**message, "headers": others + names}
            await send(message)

        await self.app(scope, receive, answer)
