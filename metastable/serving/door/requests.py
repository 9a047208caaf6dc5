"""What is read of every request, and how a refusal is sent, whatever the path."""

from __future__ import annotations

import uuid

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from metastable.errors import InvalidOption, MalformedRequest
from metastable.serving import options
from metastable.serving.door import accounts
from metastable.serving.refusals import Refusal


def request_id(request: Request) -> str:
    """That which the shell accepted or made; a fresh one without a shell."""
    known = request.scope.get("state", {}).get("request_id")
    return known if isinstance(known, str) else uuid.uuid4().hex


def once(request: Request, name: str) -> str:
    """The value of a header that may be there once; MalformedRequest where it is there more often."""
    found = request.headers.getlist(name)
    if len(found) > 1:
        raise MalformedRequest(f"the header {name} is there {len(found)} times: send it once")
    return found[0] if found else ""


def headers_of(request: Request) -> list[tuple[str, str]]:
    """Options in headers, and those in the query as if they were headers.

    Raises InvalidOption for a query of an unknown name.
    """
    given = list(request.headers.items())
    for name, value in request.query_params.multi_items():
        if name not in options.NAMES:
            raise InvalidOption(f"the query has an unknown name: use {', '.join(options.NAMES)}")
        given.append((options.HEADER_PREFIX + name, value))
    return given


def refused(refusal: Refusal, request: Request) -> Response:
    """A refusal as JSON; its code is noted."""
    accounts.note(request.scope, refusal.code)
    return JSONResponse(refusal.content(request_id(request)), refusal.status, refusal.headers)
