"""Images decoded beside the event loop, on the cores there are, with a bound on what that takes."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from metastable.errors import DeadlineExceeded, Overloaded
from metastable.images import DecodedImage, ImageLimits, decode, pixels_of
from metastable.serving.backends.base import Served

LATE = "the deadline passed before the image was decoded: allow more time, or send a smaller one"


class Decoder:
    """For one event loop.

    Args:
        limits: of one image.
        threads: that decode.
        alone: pixels from which an image is decoded with no other such one beside it: each takes up to 20
            bytes a pixel meanwhile, and seconds.
        waiting: such images that may wait for their turn; more are refused.
    """

    def __init__(
        self, limits: ImageLimits, *, threads: int, alone: int = 4_000_000, waiting: int = 8
    ) -> None:
        self._limits, self._alone, self._most = limits, alone, waiting
        self._waiting, self._seconds = 0, 1.0  # the latter of the last large image
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._large = asyncio.Lock()

    async def __call__(self, data: bytes, served: Served, deadline: float | None) -> DecodedImage:
        """An image of the shape that is served.

        Args:
            deadline: on `time.monotonic`.

        Raises what `decode` raises, DeadlineExceeded, and Overloaded where too many large images wait.
        """
        loop = asyncio.get_running_loop()
        ends = None if deadline is None else loop.time() + deadline - time.monotonic()
        channels, height, width = served.shape
        work = functools.partial(
            decode, data, size=(height, width), channels=channels, fit=served.fit, limits=self._limits
        )
        try:
            async with asyncio.timeout_at(ends):
                if pixels_of(data, self._limits) < self._alone:
                    return await loop.run_in_executor(self._pool, work)
                return await self._in_turn(work)
        except TimeoutError:
            raise DeadlineExceeded(LATE) from None

    async def _in_turn(self, work: Callable[[], DecodedImage]) -> DecodedImage:
        if self._waiting >= self._most:
            wait = self._seconds * self._waiting
            raise Overloaded(
                f"{self._waiting} other images as large wait to be decoded: try again in {wait:.0f} s, or "
                "send a smaller one",
                wait,
            )
        self._waiting += 1
        try:
            await self._large.acquire()
        finally:
            self._waiting -= 1
        started = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        running.add_done_callback(functools.partial(self._ended, started))
        # A thread cannot be stopped: the lock is kept until it ends, whoever still waits for it.
        return await asyncio.shield(running)

    def _ended(self, started: float, running: asyncio.Future[DecodedImage]) -> None:
        self._seconds = time.monotonic() - started
        self._large.release()
        if not running.cancelled():
            running.exception()  # seen, also where nobody waits any more

    def close(self) -> None:
        """Wait for nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)
