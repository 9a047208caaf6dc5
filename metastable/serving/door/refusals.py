"""Refusals as bytes, and as ASGI applications."""

from __future__ import annotations

import http
import json
from collections.abc import Iterable

from starlette.types import Receive, Scope, Send

from metastable.serving import refusals
from metastable.serving.door import accounts, identity
from metastable.serving.door.identity import Headers


class Refusal(refusals.Refusal):
    """A refusal that the server's shell gives by itself; also an ASGI application that gives it."""

    def body(self, request_id: str | None) -> bytes:
        return json.dumps(self.content(request_id)).encode()

    def given(self, body: bytes) -> Headers:
        """Header fields with those of the body."""
        of_body = [("content-type", "application/json"), ("content-length", str(len(body)))]
        pairs = [*of_body, *self.headers.items()]
        return [(name.lower().encode(), value.encode()) for name, value in pairs]

    def wire(self, more: Iterable[tuple[bytes, bytes]], request_id: str | None, head_only: bool) -> bytes:
        """The whole answer as bytes, for a connection that is closed after it.

        `more`: further header fields.
        """
        body = self.body(request_id)
        lines = [f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}".encode()]
        every = [*more, *self.given(body), (b"connection", b"close")]
        lines += [name + b": " + value for name, value in every]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head_only else body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accounts.note(scope, self.code)
        body = self.body(scope["state"].get("request_id"))
        headers = [*self.given(body), *identity.echo(scope["state"])]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
