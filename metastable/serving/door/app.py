"""The ASGI application: paths, methods and statuses.

    app = build(backend, Intake(), Status(), metrics)

`/classify`, and `/predictions/metastable` as TorchServe has it, take one image as the body, or a form, or
JSON with base64; `/v2/...` is the Open Inference Protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from metastable.errors import Draining, MalformedRequest, Unavailable
from metastable.serving.backends.base import Backend
from metastable.serving.door import inference, schemas
from metastable.serving.door.entry import Door, Status
from metastable.serving.door.intake import Intake
from metastable.serving.door.models import Models
from metastable.serving.door.requests import refused
from metastable.serving.metrics import Metrics
from metastable.serving.policy.keeper import Keeper
from metastable.serving.refusals import Refusal
from metastable.version import __version__

NAMES = {404: "not_found", 405: "method_not_allowed"}


def build(
    backend: Backend | Models,
    intake: Intake,
    status: Status,
    metrics: Metrics,
    *,
    keeper: Keeper | None = None,
    drain_seconds: float = 10.0,
    around: AbstractAsyncContextManager[Any] | None = None,
) -> FastAPI:
    """The application.

    Args:
        backend: what answers, or several versions; asked for `served` once it is ready, and closed when the
            application ends.
        status: of the server's shell.
        metrics: counts every request.
        keeper: of the operator's policy; None for no policy.
        drain_seconds: that the backend has for what is under way at the end.
        around: entered before the backend is asked for anything, left after it has been closed.
    """
    models = backend if isinstance(backend, Models) else Models([backend])
    door = Door(models, intake, status, metrics, keeper or Keeper())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with around or nullcontext():
            yield
            await door.close(drain_seconds)

    off: dict[str, Any] = {"docs_url": None, "redoc_url": None, "redirect_slashes": False}
    # FastAPI's own spans would carry paths, queries and the texts of exceptions, which are a client's.
    off["telemetry"] = dict.fromkeys(
        ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
    )
    app = FastAPI(title="Metastable", version=__version__, lifespan=lifespan, **off)
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
    app.include_router(inference.router(door))
    app.add_middleware(_Heads)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _fault)
    return app


class _Heads:
    """HEAD is what GET is, without the body, which the server leaves out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            inner = {**scope, "method": "GET"}
            await self._app(inner, receive, send)
            scope["route"] = inner.get("route")  # for whoever tells of the request
        else:
            await self._app(scope, receive, send)


async def _live() -> dict[str, str]:
    """The process is there."""
    return {"status": "live"}


def _ready(door: Door) -> Callable[[Request], Awaitable[Response]]:
    async def ready(request: Request) -> Response:
        """A question would be answered now."""
        try:
            door.check_ready()
        except (Draining, Unavailable) as error:
            return refused(Refusal.of(error), request)
        return JSONResponse({"status": "ready"})

    return ready


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=error.headers)
    text = {
        404: "there is nothing at this path: POST images to /classify, and see /openapi.json",
        405: "the path does not take this method: the header Allow says which",
    }.get(error.status_code, "the request cannot be answered")
    code = NAMES.get(error.status_code, "http")
    fields = tuple((name.lower(), value) for name, value in (error.headers or {}).items())
    refusal = Refusal(error.status_code, code, text, fields=fields)
    return refused(refusal, request)


async def _invalid(request: Request, error: Exception) -> Response:
    refusal = Refusal.of(MalformedRequest("the request does not have the form that /openapi.json says"))
    return refused(refusal, request)


async def _fault(request: Request, error: Exception) -> Response:
    return refused(Refusal.of(error), request)
