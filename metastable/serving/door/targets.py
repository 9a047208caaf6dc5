"""The second word of a request: a path, or what a proxy or a tunnel would be asked for (RFC 9112, 3.2)."""

from __future__ import annotations

import re

import h11
from starlette.types import ASGIApp, Receive, Scope, Send

from metastable.serving.door.refusals import Refusal

METHODS = "GET, HEAD, POST, OPTIONS"

_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_VERSION = Refusal(400, "malformed_request", "only HTTP/1.1 and HTTP/1.0 are spoken here")
_TUNNEL = Refusal(
    405, "method_not_allowed", "this is no proxy: there is no CONNECT", None, (("allow", METHODS),)
)
_TARGET = Refusal(400, "malformed_request", "the target of a request must be a path, such as /livez")
_FRAMING = Refusal(400, "malformed_request", "give Content-Length or Transfer-Encoding, and not both")


async def _options(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", METHODS.encode())]})
    await send({"type": "http.response.body"})


def read(request: h11.Request) -> tuple[bytes, ASGIApp | None]:
    """The path with its query, and what answers instead of the application where that must not be asked."""
    target = request.target
    names = {name for name, _ in request.headers}
    if found := _ABSOLUTE.match(target):
        target = target[found.end() :]
        target = target if target.startswith(b"/") else b"/" + target
    if not request.http_version.startswith(b"1."):
        return target, _VERSION
    if {b"content-length", b"transfer-encoding"} <= names:
        return target, _FRAMING  # a proxy may have seen another end of the body
    if request.method == b"CONNECT":
        return target, _TUNNEL
    if request.method == b"OPTIONS" and target == b"*":
        return target, _options
    return target, None if target.startswith(b"/") else _TARGET
