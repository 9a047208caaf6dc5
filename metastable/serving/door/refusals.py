"""Errors as every client gets them: JSON with a stable code, and nothing of what it sent."""

from __future__ import annotations

import http
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from metastable.errors import RequestError
from metastable.serving.door import identity
from metastable.serving.door.identity import Headers


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error; also an ASGI application that gives it.

    Attributes:
        retry_after: seconds, rounded up for the header; None where trying again would not help.
        fields: further header fields, their names in small letters.
    """

    status: int
    code: str
    message: str
    retry_after: float | None = None
    fields: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, error: RequestError, *fields: tuple[str, str]) -> Refusal:
        return cls(error.status, error.code, str(error), error.retry_after, fields)

    def body(self, request_id: str | None) -> bytes:
        error = {"code": self.code, "message": self.message}
        return json.dumps({"error": error, "request_id": request_id}).encode()

    def headers(self, body: bytes) -> Headers:
        given = [("content-type", "application/json"), ("content-length", str(len(body))), *self.fields]
        if self.retry_after is not None:
            given.append(("retry-after", str(max(1, math.ceil(self.retry_after)))))
        return [(name.encode(), value.encode()) for name, value in given]

    def wire(self, more: Iterable[tuple[bytes, bytes]], request_id: str | None, head_only: bool) -> bytes:
        """The whole answer as bytes, for a connection that is closed after it.

        `more`: further header fields.
        """
        body = self.body(request_id)
        lines = [f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}".encode()]
        every = [*more, *self.headers(body), (b"connection", b"close")]
        lines += [name + b": " + value for name, value in every]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head_only else body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self.body(scope["state"].get("request_id"))
        headers = [*self.headers(body), *identity.echo(scope["state"])]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
