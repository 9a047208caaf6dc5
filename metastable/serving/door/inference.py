"""The paths of the Open Inference Protocol, version 2."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from metastable.errors import Cancelled, Draining, Unavailable
from metastable.serving import options
from metastable.serving.door import accounts, schemas, tensors
from metastable.serving.door.answering import while_there
from metastable.serving.door.entry import Door
from metastable.serving.door.requests import headers_of, once, request_id
from metastable.serving.refusals import Refusal
from metastable.version import __version__

HEADER = "inference-header-content-length"
NAME = "metastable"
"""What every model can be called, beside its own name."""


def router(door: Door) -> APIRouter:
    """The paths, for an application whose requests `door` answers."""
    routes = APIRouter()
    infer = _Infer(door)
    at = "/v2/models/{name}"
    for path in (at, at + "/versions/{version}"):
        routes.get(path, response_model=tensors.Metadata, responses=schemas.V2_ERRORS)(infer.metadata)
        routes.get(path + "/ready", response_model=schemas.Ready, responses=schemas.V2_ERRORS)(infer.ready)
        routes.post(
            path + "/infer",
            response_model=tensors.InferenceResponse,
            responses=schemas.V2_ERRORS,
            openapi_extra={"requestBody": schemas.V2_BODY},
        )(infer.infer)

    @routes.get("/v2", response_model=schemas.ServerMetadata)
    async def server() -> dict[str, Any]:
        """What this server is."""
        return {"name": NAME, "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/v2/health/live", response_model=schemas.Alive)
    async def live() -> dict[str, bool]:
        """The process is there."""
        return {"live": True}

    @routes.get("/v2/health/ready", response_model=schemas.Ready, responses=schemas.V2_ERRORS)
    async def ready(request: Request) -> Response:
        """A question would be answered now."""
        return infer.state(request)

    return routes


class _Infer:
    def __init__(self, door: Door) -> None:
        self._door = door

    def state(self, request: Request) -> Response:
        try:
            self._door.check_ready()
        except (Draining, Unavailable) as error:
            return _refused(Refusal.of(error), request)
        return JSONResponse({"ready": True})

    async def ready(self, request: Request, name: str, version: str = "") -> Response:
        """Whether the model would answer now."""
        return self._unknown(request, name, version) or self.state(request)

    async def metadata(self, request: Request, name: str, version: str = "") -> Response:
        """The model's inputs and outputs."""
        if refused := self._unknown(request, name, version):
            return refused
        return JSONResponse(tensors.metadata(self._door.backend.served, name))

    async def infer(self, request: Request, name: str, version: str = "") -> Response:
        """Purify and classify images."""
        received, id, door = time.monotonic(), request_id(request), self._door
        account = accounts.of(request)
        setting = "none given"
        if refused := self._unknown(request, name, version):
            return refused
        try:
            served = door.backend.served
            with door.budget.share() as share:
                early = options.parse(headers_of(request), {}, door.allowed)
                setting = early.setting
                door.backend.check_room(setting)
                body = await door.body(request, share)
                asked, files = await door.aside(body, lambda: self._read(request, body))
                tensors.check_outputs(asked)
                given = tensors.options_in(asked)
                chosen = options.parse(headers_of(request), given, door.allowed)
                setting = chosen.setting
                chosen = dataclasses.replace(chosen, top_k=len(served.classes))
                asking = door.answerer.several(id, files, chosen, received, account.follow)
                outcomes = await while_there(request, asking)
        except (ClientDisconnect, Cancelled):
            door.count(request, setting, [Cancelled.code], received)
            return Response(status_code=Cancelled.status)
        except Exception as error:
            refusal = Refusal.of(error)
            door.count(request, setting, [refusal.code], received)
            return _refused(refusal, request)
        door.count(request, setting, [one.code for one in outcomes], received)
        account.judged((one.code, one.body) for one in outcomes)
        for outcome in outcomes:  # the protocol has no outcome for each image
            if outcome.refusal is not None:
                return _refused(outcome.refusal, request)
        found = tensors.answer(asked, [one.body for one in outcomes], served, name, id)
        return JSONResponse(found)

    def _read(self, request: Request, body: bytes) -> tuple[tensors.InferenceRequest, list[bytes]]:
        asked, binary = tensors.read(body, once(request, HEADER) or None)
        return asked, tensors.files(asked, binary, self._door.backend.served, self._door.intake.images)

    def _unknown(self, request: Request, name: str, version: str) -> Response | None:
        """A refusal where the server is not ready, or the model is another one."""
        try:
            self._door.check_ready()
        except (Draining, Unavailable) as error:
            return _refused(Refusal.of(error), request)
        served = self._door.backend.served
        if name not in (NAME, served.name) or version not in ("", served.version):
            text = f"there is no such model: it is {served.name}, or {NAME}, version {served.version}"
            return _refused(Refusal(404, "not_found", text), request)
        return None


def _refused(refusal: Refusal, request: Request) -> Response:
    """As the protocol has errors, with our code beside it."""
    accounts.note(request.scope, refusal.code)
    body = {"error": refusal.message, "code": refusal.code, "request_id": request_id(request)}
    return JSONResponse(body, refusal.status, refusal.headers)
