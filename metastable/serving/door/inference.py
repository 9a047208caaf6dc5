"""The paths of the Open Inference Protocol, version 2."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from metastable.errors import Cancelled, Draining, Unavailable
from metastable.serving.backends.base import Backend
from metastable.serving.door import accounts, schemas, steering, tensors
from metastable.serving.door.answering import while_there
from metastable.serving.door.entry import Door
from metastable.serving.door.models import NAME
from metastable.serving.door.requests import once, request_id
from metastable.serving.door.steering import Chosen
from metastable.serving.refusals import Refusal
from metastable.version import __version__

HEADER = "inference-header-content-length"


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
        models = self._door.models
        shown = self._named(name, version) or models.of(self._door.keeper.policy.version)
        versions = [one.served.version for one in models.called(name)]
        return JSONResponse(tensors.metadata(shown.served, name, versions))

    async def infer(self, request: Request, name: str, version: str = "") -> Response:
        """Purify and classify images."""
        received, id, door = time.monotonic(), request_id(request), self._door
        account = accounts.of(request)
        policy, chosen = door.keeper.policy, None
        if refused := self._unknown(request, name, version):
            return refused
        try:
            named = self._named(name, version)
            with door.budget.share() as share:
                chosen = steering.choose(door.models, policy, request, {}, named)
                await door.shadows.check_room(chosen.backend, chosen.options.setting)
                body = await door.body(request, share)
                asked, binary = await door.aside(body, lambda: self._read(request, body))
                tensors.check_outputs(asked)
                chosen = steering.choose(door.models, policy, request, tensors.options_in(asked), named)
                chosen = _of_all_classes(chosen)
                served = chosen.backend.served
                files = await door.aside(
                    body, lambda: tensors.files(asked, binary, served, door.intake.images)
                )
                asking = door.answerer.several(id, files, chosen, received, account.follow)
                outcomes = await while_there(request, asking)
        except (ClientDisconnect, Cancelled):
            door.count(request, chosen, [Cancelled.code], received)
            return Response(status_code=Cancelled.status)
        except Exception as error:
            refusal = Refusal.of(error)
            door.count(request, chosen, [refusal.code], received)
            return door.sent(_refused(refusal, request), chosen)
        door.count(request, chosen, [one.code for one in outcomes], received)
        account.judged((one.code, one.body) for one in outcomes)
        for outcome in outcomes:  # the protocol has no outcome for each image
            if outcome.refusal is not None:
                return door.sent(_refused(outcome.refusal, request), chosen)
        found = tensors.answer(asked, [one.body for one in outcomes], served, name, id)
        if chosen.arm is not None:
            found["parameters"] = {"arm": chosen.arm}
        return door.sent(JSONResponse(found), chosen, outcomes)

    def _read(self, request: Request, body: bytes) -> tuple[tensors.InferenceRequest, bytes]:
        return tensors.read(body, once(request, HEADER) or None)

    def _named(self, name: str, version: str) -> Backend | None:
        """The model that a known path singles out among several; None where it may be any of them."""
        models = self._door.models
        found = models.called(name, version)
        return found[0] if version or len(found) < len(models.backends) else None

    def _unknown(self, request: Request, name: str, version: str) -> Response | None:
        """A refusal where the server is not ready, or the model is another one."""
        try:
            self._door.check_ready()
        except (Draining, Unavailable) as error:
            return _refused(Refusal.of(error), request)
        models = self._door.models
        if not models.called(name, version):
            known = "; ".join(f"{one.name}, version {one.version}" for one in models.served.values())
            text = f"there is no such model: call it {NAME}, or as it is: {known}"
            return _refused(Refusal(404, "not_found", text), request)
        return None


def _of_all_classes(chosen: Chosen) -> Chosen:
    """The protocol's answer has the probabilities of all classes."""
    every = dataclasses.replace(chosen.options, top_k=len(chosen.backend.served.classes))
    return dataclasses.replace(chosen, options=every)


def _refused(refusal: Refusal, request: Request) -> Response:
    """As the protocol has errors, with our code beside it."""
    accounts.note(request.scope, refusal.code)
    body = {"error": refusal.message, "code": refusal.code, "request_id": request_id(request)}
    return JSONResponse(body, refusal.status, refusal.headers)
