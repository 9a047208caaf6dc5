"""From images and options to outcomes: admitted, decoded, asked, each image for itself."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from metastable.errors import Cancelled
from metastable.serving import judging
from metastable.serving.backends.base import UNFOLLOWED, Backend, Follow, Question
from metastable.serving.door.decoding import Decoder
from metastable.serving.metrics import Metrics
from metastable.serving.options import RequestOptions
from metastable.serving.refusals import Refusal

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What became of one image: a verdict's body, or a refusal."""

    body: dict[str, Any]
    refusal: Refusal | None = None

    @property
    def code(self) -> str:
        """`ok`, or that of the refusal."""
        return "ok" if self.refusal is None else self.refusal.code


class Answerer:
    """Asks a backend about images.

    Args:
        decoder: of the images, once there is room for them.
        metrics: counts the seconds of every stage of what is answered.
    """

    def __init__(self, backend: Backend, decoder: Decoder, metrics: Metrics) -> None:
        self._backend, self._decoder, self._metrics = backend, decoder, metrics

    async def one(
        self, id: str, data: bytes, options: RequestOptions, received: float, follow: Follow = UNFOLLOWED
    ) -> Outcome:
        """The outcome of an image; never raises for what it contains.

        Args:
            id: of the request that the image came in, as the client is told it.
            received: when that began, on `time.monotonic`: what it waited counts.
            follow: how its way is followed.
        """
        try:
            return Outcome(await self._judged(id, data, options, received, follow))
        except Exception as error:
            refusal = Refusal.of(error)
            return Outcome(refusal.content(id), refusal)

    async def several(
        self,
        id: str,
        images: Sequence[bytes],
        options: RequestOptions,
        received: float,
        follow: Callable[[], Follow] = Follow,
    ) -> list[Outcome]:
        """Each image's own outcome, in order; `follow` says how the next one is followed."""
        asked = [self.one(f"{id}.{i}", data, options, received, follow()) for i, data in enumerate(images)]
        return await asyncio.gather(*asked)

    async def _judged(
        self, id: str, data: bytes, options: RequestOptions, received: float, follow: Follow
    ) -> dict[str, Any]:
        limit = options.deadline_ms
        deadline = None if limit is None else received + 1e-3 * limit
        with follow.during("admit"):
            admitted = await self._backend.admit(options.setting)
        async with admitted as room:
            started = time.monotonic()
            with follow.during("decode"):
                image = await self._decoder(data, self._backend.served, deadline)
            seconds = {"decode": time.monotonic() - started}
            # Two clients may have named their requests alike: the engine's name for one is ours alone.
            question = Question(secrets.token_hex(16), image, options, deadline, follow)
            judged = await self._backend.ask(question, room)
        seconds |= judged.seconds
        for stage, spent in seconds.items():
            self._metrics.stage(stage, spent)
        seconds["total"] = time.monotonic() - received
        return judged.body | {"request_id": id, "timings_ms": judging.milliseconds(seconds)}


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
