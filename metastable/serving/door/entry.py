"""A request's way: ready, room, body, options, outcomes, answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from metastable.errors import Cancelled, Draining, Unavailable
from metastable.serving.door import accounts, bodies, parts, requests, steering
from metastable.serving.door.accounts import Account
from metastable.serving.door.answering import Answerer, Outcome, while_there
from metastable.serving.door.bodies import Budget
from metastable.serving.door.decoding import Decoder
from metastable.serving.door.intake import Intake
from metastable.serving.door.models import Models
from metastable.serving.door.requests import once
from metastable.serving.door.shadow import Shadows
from metastable.serving.door.steering import Chosen
from metastable.serving.metrics import Metrics
from metastable.serving.policy.counts import Counts
from metastable.serving.policy.keeper import Keeper
from metastable.serving.refusals import Refusal

T = TypeVar("T")
_ASIDE = 100_000
"""Bytes from which a body is unpacked beside the event loop."""


class Status(Protocol):
    """What the server's shell tells the application."""

    @property
    def draining(self) -> bool:
        """No more work is taken."""
        ...


class Door:
    """Turns requests into outcomes; `build` gives it paths.

    Args:
        metrics: counts every request.
        keeper: of the policy.
    """

    def __init__(
        self, models: Models, intake: Intake, status: Status, metrics: Metrics, keeper: Keeper
    ) -> None:
        self.models, self.intake, self.status, self.metrics = models, intake, status, metrics
        self.keeper, self.counts = keeper, Counts(metrics.registry)
        self.budget = Budget(intake.bodies)
        self.decoder = Decoder(intake.image, threads=intake.threads)
        self.shadows = Shadows(models, self.counts)
        self.answerer = Answerer(self.decoder, self.shadows, self.counts, metrics)
        self._unpacking = asyncio.Lock()

    def check_ready(self) -> None:
        """Raises Draining or Unavailable."""
        if self.status.draining:
            raise Draining("the server is stopping: send the request to another one")
        if not self.models.ready:
            raise Unavailable("the server is starting what answers: try again")

    async def classify(self, request: Request) -> Response:
        """One request, whatever its body's form."""
        received, id, account = time.monotonic(), requests.request_id(request), accounts.of(request)
        policy, chosen = self.keeper.policy, None
        try:
            self.check_ready()
            # What the headers say is known before the body: it need not be read in vain.
            chosen = steering.choose(self.models, policy, request, {})
            with self.budget.share() as share:
                await self.shadows.check_room(chosen.backend, chosen.options.setting)
                found = await self._parts(request, share)
                chosen = steering.choose(self.models, policy, request, found.options)
                outcomes = await while_there(request, self._outcomes(account, id, found, chosen, received))
        except (ClientDisconnect, Cancelled):
            self.count(request, chosen, [Cancelled.code], received)
            return Response(status_code=Cancelled.status)
        except Exception as error:
            refusal = Refusal.of(error)
            self.count(request, chosen, [refusal.code], received)
            return self.sent(requests.refused(refusal, request), chosen)
        self.count(request, chosen, [one.code for one in outcomes], received)
        account.judged((one.code, one.body) for one in outcomes)
        return self.sent(_answer(outcomes, several=found.several, id=id), chosen, outcomes)

    def sent(self, answer: Response, chosen: Chosen | None, outcomes: Sequence[Outcome] = ()) -> Response:
        """The answer as it is sent: it says the arm; when that is done, the shadow may look at the images."""
        answer.headers.update({} if chosen is None else chosen.headers)
        answered = [one.answered for one in outcomes if one.answered is not None]
        if chosen is not None and chosen.policy.shadow is not None and answered:
            shadow = chosen.policy.shadow

            async def offer() -> None:
                self.shadows.offer(shadow, answered)

            answer.background = BackgroundTask(offer)
        return answer

    async def body(self, request: Request, share: bodies.Share) -> bytes:
        """The whole body, as it was before its Content-Encoding.

        Raises what `bodies` raises.
        """
        limit, headers = self.intake.body, request.headers
        bodies.check_length(headers.get("content-length"), limit)
        body = await bodies.read(request.stream(), share, limit)
        encoding = ", ".join(headers.getlist("content-encoding"))
        return await self.aside(body, lambda: bodies.plain(body, encoding, share, limit))

    async def aside(self, body: bytes, work: Callable[[], T]) -> T:
        """What `work` on a body returns or raises: of a large one in a thread, one after the other.

        JSON in memory takes many times its bytes.
        """
        if len(body) < _ASIDE:
            return work()
        async with self._unpacking:
            return await asyncio.to_thread(work)

    async def close(self, drain: float) -> None:
        """End what is behind it, which has `drain` seconds."""
        self.decoder.close()
        await self.shadows.close()
        await self.models.close(drain)

    def count(self, request: Request, chosen: Chosen | None, codes: Sequence[str], received: float) -> None:
        """Note what became of the images of a request: `ok`, or the code of an error."""
        setting = "none given" if chosen is None else chosen.options.setting
        arm = "" if chosen is None else chosen.arm or ""
        accounts.of(request).asked(setting, codes)
        for code in codes:
            self.metrics.request(setting, code, time.monotonic() - received, arm)

    async def _parts(self, request: Request, share: bodies.Share) -> parts.Parts:
        body = await self.body(request, share)
        kind = once(request, "content-type")
        return await self.aside(body, lambda: parts.of_body(body, kind, self.intake.images))

    async def _outcomes(
        self, account: Account, id: str, found: parts.Parts, chosen: Chosen, received: float
    ) -> list[Outcome]:
        if found.several:
            return await self.answerer.several(id, found.images, chosen, received, account.follow)
        return [await self.answerer.one(id, found.images[0], chosen, received, account.follow())]


def _answer(outcomes: list[Outcome], *, several: bool, id: str) -> Response:
    waits = [one.refusal.headers for one in outcomes if one.refusal is not None and one.refusal.headers]
    headers = max(waits, key=lambda one: int(one["Retry-After"]), default={})
    if several:
        body: dict[str, Any] = {"results": [one.body for one in outcomes], "request_id": id}
        return JSONResponse(body, headers=headers)
    [outcome] = outcomes
    status = 200 if outcome.refusal is None else outcome.refusal.status
    return JSONResponse(outcome.body, status, headers)
