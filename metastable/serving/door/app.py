"""The ASGI application: paths, methods and statuses.

    app = build(backend, Intake(), Status())

`/classify`, and `/predictions/metastable` as TorchServe has it, take one image as the body, or a form, or
JSON with base64; `/v2/...` is the Open Inference Protocol.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from metastable.errors import Cancelled, Draining, InvalidOption, MalformedRequest, Unavailable
from metastable.serving import judging, options
from metastable.serving.backends.base import Backend
from metastable.serving.door import bodies, parts, schemas
from metastable.serving.door.answering import Answerer, Outcome, while_there
from metastable.serving.door.bodies import Budget
from metastable.serving.door.decoding import Decoder
from metastable.serving.door.limits import Intake
from metastable.serving.judging import Refusal
from metastable.serving.metrics import Metrics
from metastable.serving.options import Allowed, RequestOptions
from metastable.version import __version__

NAMES = {404: "not_found", 405: "method_not_allowed"}
_ASIDE = 100_000
"""Bytes from which a body is unpacked beside the event loop."""


@dataclass
class Status:
    """What the server's shell tells the application: no more work is taken once it drains."""

    draining: bool = False


class Door:
    """Turns requests into outcomes; `build` gives it paths.

    Args:
        metrics: counts every request.
    """

    def __init__(self, backend: Backend, intake: Intake, status: Status, metrics: Metrics) -> None:
        self.backend, self.intake, self.status, self.metrics = backend, intake, status, metrics
        self.budget = Budget(intake.bodies)
        self.decoder = Decoder(intake.image, threads=intake.threads)
        self.answerer = Answerer(backend, self.decoder)

    @property
    def allowed(self) -> Allowed:
        served = self.backend.served
        return Allowed(served.settings, served.default, len(served.classes), served.allow_seed)

    def check_ready(self) -> None:
        """Raises Draining or Unavailable."""
        if self.status.draining:
            raise Draining("the server is stopping: send the request to another one")
        if not self.backend.ready:
            raise Unavailable("the server is starting what answers: try again")

    async def classify(self, request: Request) -> Response:
        """One request, whatever its body's form."""
        received, id = time.monotonic(), request_id(request)
        setting = "none given"
        try:
            self.check_ready()
            # What the headers say is known before the body: it need not be read in vain.
            early = options.parse(headers_of(request), {}, self.allowed)
            setting = early.setting
            with self.budget.share() as share:
                self.backend.check_room(setting)
                found = await self._parts(request, share)
                chosen = self._options(request, found)
                setting = chosen.setting
                outcomes = await while_there(request, self._outcomes(id, found, chosen, received))
        except (ClientDisconnect, Cancelled):
            self.metrics.request(setting, Cancelled.code, time.monotonic() - received)
            return Response(status_code=Cancelled.status)
        except Exception as error:
            refusal = judging.refusal_of(error)
            self.metrics.request(setting, refusal.code, time.monotonic() - received)
            return refused(refusal, id)
        for outcome in outcomes:
            code = "ok" if outcome.refusal is None else outcome.refusal.code
            self.metrics.request(setting, code, time.monotonic() - received)
        return _sent(outcomes, several=found.several, id=id)

    async def _parts(self, request: Request, share: bodies.Share) -> parts.Parts:
        limit, headers = self.intake.body, request.headers
        bodies.check_length(headers.get("content-length"), limit)
        body = await bodies.read(request.stream(), share, limit)
        encoding, kind = headers.get("content-encoding", ""), headers.get("content-type", "")

        def unpacked() -> parts.Parts:
            plain = bodies.plain(body, encoding, share, limit)
            return parts.of_body(plain, kind, self.intake.images)

        return unpacked() if len(body) < _ASIDE else await asyncio.to_thread(unpacked)

    def _options(self, request: Request, found: parts.Parts) -> RequestOptions:
        return options.parse(headers_of(request), found.options, self.allowed)

    async def _outcomes(
        self, id: str, found: parts.Parts, chosen: RequestOptions, received: float
    ) -> list[Outcome]:
        if found.several:
            return await self.answerer.several(id, found.images, chosen, received)
        return [await self.answerer.one(id, found.images[0], chosen, received)]


def _sent(outcomes: list[Outcome], *, several: bool, id: str) -> Response:
    waits = [one.refusal.headers for one in outcomes if one.refusal is not None and one.refusal.headers]
    headers = max(waits, key=lambda one: int(one["Retry-After"]), default={})
    if several:
        body: dict[str, Any] = {"results": [one.body for one in outcomes], "request_id": id}
        return JSONResponse(body, headers=headers)
    [outcome] = outcomes
    status = 200 if outcome.refusal is None else outcome.refusal.status
    return JSONResponse(outcome.body, status, headers)


def refused(refusal: Refusal, id: str | None) -> Response:
    """A refusal as JSON."""
    return JSONResponse(refusal.body(id), refusal.status, refusal.headers)


def request_id(request: Request) -> str:
    """That which the shell accepted or made; a fresh one without a shell."""
    known = request.scope.get("state", {}).get("request_id")
    return known if isinstance(known, str) else uuid.uuid4().hex


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


def build(backend: Backend, intake: Intake, status: Status, metrics: Metrics) -> FastAPI:
    """The application.

    Args:
        backend: what answers; asked for `served` once it is ready.
        status: set by the server's shell.
        metrics: counts every request.
    """
    app = FastAPI(
        title="Metastable", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    door = Door(backend, intake, status, metrics)
    app.state.door = door

    async def classify(request: Request) -> Response:
        """Purify and classify one image, or several."""
        return await door.classify(request)

    shown = {"openapi_extra": {"requestBody": schemas.BODY, "parameters": schemas.PARAMETERS}}
    for path in ("/classify", "/predictions/metastable"):
        app.post(path, responses=schemas.RESPONSES, response_model=None, **shown)(classify)  # type: ignore[arg-type]
    app.get("/livez", response_model=schemas.Live)(_live)
    app.get("/readyz", response_model=schemas.Live, responses=schemas.NOT_READY)(_ready(door))
    app.get("/ping", response_model=None, include_in_schema=False)(_ready(door))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _fault)
    return app


async def _live() -> dict[str, str]:
    """The process is there."""
    return {"status": "live"}


def _ready(door: Door) -> Callable[[Request], Awaitable[Response]]:
    async def ready(request: Request) -> Response:
        """A question would be answered now."""
        try:
            door.check_ready()
        except (Draining, Unavailable) as error:
            return refused(judging.refusal_of(error), request_id(request))
        return JSONResponse({"status": "ready"})

    return ready


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {
        404: "there is nothing at this path: POST images to /classify, and see /openapi.json",
        405: "the path does not take this method: the header Allow says which",
    }.get(error.status_code, "the request cannot be answered")
    refusal = Refusal(
        error.status_code, NAMES.get(error.status_code, "http"), text, dict(error.headers or {})
    )
    return refused(refusal, request_id(request))


async def _invalid(request: Request, error: Exception) -> Response:
    refusal = judging.refusal_of(
        MalformedRequest("the request does not have the form that /openapi.json says")
    )
    return refused(refusal, request_id(request))


async def _fault(request: Request, error: Exception) -> Response:
    return refused(judging.refusal_of(error), request_id(request))
