"""From images and options to outcomes: admitted, decoded, asked, each image for itself."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request

from metastable.engine.engine import LATE
from metastable.errors import Cancelled, DeadlineExceeded, Flagged
from metastable.serving import judging
from metastable.serving.backends.base import UNFOLLOWED, Follow, Judged, Question
from metastable.serving.door.decoding import Decoder
from metastable.serving.door.shadow import Answered, Shadows
from metastable.serving.door.steering import Chosen
from metastable.serving.metrics import Metrics
from metastable.serving.policy.counts import Counts
from metastable.serving.refusals import Refusal

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What became of one image: a verdict's body and what it came from, or a refusal."""

    body: dict[str, Any]
    refusal: Refusal | None = None
    answered: Answered | None = None

    @property
    def code(self) -> str:
        """`ok`, or that of the refusal."""
        return "ok" if self.refusal is None else self.refusal.code


class Answerer:
    """Asks backends about images, and does with those that are flagged what the policy says.

    Args:
        decoder: of the images, once there is room for them.
        shadows: make room for them.
        metrics: counts the seconds of every stage of what is answered.
    """

    def __init__(self, decoder: Decoder, shadows: Shadows, counts: Counts, metrics: Metrics) -> None:
        self._decoder, self._shadows, self._counts, self._metrics = decoder, shadows, counts, metrics

    async def one(
        self, id: str, data: bytes, chosen: Chosen, received: float, follow: Follow = UNFOLLOWED
    ) -> Outcome:
        """The outcome of an image; never raises for what it contains.

        Args:
            id: of the request that the image came in, as the client is told it.
            received: when that began, on `time.monotonic`: what it waited counts.
            follow: how its way is followed.
        """
        try:
            with self._shadows.held():
                return await self._judged(id, data, chosen, received, follow)
        except Exception as error:
            refusal = Refusal.of(error)
            return Outcome(refusal.content(id), refusal)

    async def several(
        self,
        id: str,
        images: Sequence[bytes],
        chosen: Chosen,
        received: float,
        follow: Callable[[], Follow] = Follow,
    ) -> list[Outcome]:
        """Each image's own outcome, in order; `follow` says how the next one is followed."""
        asked = [self.one(f"{id}.{i}", data, chosen, received, follow()) for i, data in enumerate(images)]
        return await asyncio.gather(*asked)

    async def _judged(self, id: str, data: bytes, chosen: Chosen, received: float, follow: Follow) -> Outcome:
        options, backend = chosen.options, chosen.backend
        limit = options.deadline_ms
        deadline = None if limit is None else received + 1e-3 * limit
        with follow.during("admit"):
            admitted = await self._shadows.admit(backend, options.setting)
        async with admitted as room:
            started = time.monotonic()
            with follow.during("decode"):
                image = await self._decoder(data, backend.served, deadline)
            seconds = {"decode": time.monotonic() - started}
            # Two clients may have named their requests alike: the engine's name for one is ours alone.
            question = Question(secrets.token_hex(16), image, options, deadline, follow)
            judged = await backend.ask(question, room)
        answered = await self._flagged(Answered(backend, question, judged), chosen)
        seconds |= answered.judged.seconds
        for stage, spent in seconds.items():
            self._metrics.stage(stage, spent)
        seconds["total"] = time.monotonic() - received
        said = {"request_id": id, "timings_ms": judging.milliseconds(seconds)}
        if chosen.arm is not None:
            said["arm"] = chosen.arm
        return Outcome(answered.judged.body | said, answered=answered)

    async def _flagged(self, first: Answered, chosen: Chosen) -> Answered:
        """What an image is answered; Flagged for one that is refused.

        Where a stronger setting is to answer and cannot, that is what the client is told: whoever keeps the
        server busy, or sends a short deadline, does not get the weaker answer for it.
        """
        body, setting = first.judged.body, chosen.options.setting
        rule = chosen.policy.rule(setting)
        if not rule.flags(body):
            return first
        self._counts.flagged(setting, rule.action)
        if rule.action == "refuse":
            raise Flagged(
                "this image looks anomalous, and such images are not answered here: send another one"
            )
        if rule.action == "answer":
            return first
        said: dict[str, Any] = {"action": rule.action}
        if rule.action == "mark":
            return replace(first, judged=_saying(first.judged, said))
        said["first"] = {name: body[name] for name in ("setting", "label", "class", "chains", "decided")}
        options = replace(chosen.options, setting=rule.setting)
        question = replace(first.question, id=secrets.token_hex(16), options=options)
        async with await self._shadows.admit(first.backend, rule.setting) as room:
            second = await first.backend.ask(question, room)
        if second.body["late"]:  # cut short, it may be weaker than the first
            raise DeadlineExceeded(LATE)
        spent = {stage: first.judged.seconds.get(stage, 0.0) + more for stage, more in second.seconds.items()}
        return Answered(first.backend, question, _saying(Judged(second.body, spent), said))


def _saying(judged: Judged, said: dict[str, Any]) -> Judged:
    return Judged(judged.body | {"flag_policy": said}, judged.seconds)


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled, and Cancelled raised, when the client has gone.

    The request's body must have been read.
    """
    asked = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([asked, gone], return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise Cancelled("the client has gone")
        return asked.result()
    finally:
        for one in (asked, gone):
            one.cancel()
        await asyncio.gather(asked, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
