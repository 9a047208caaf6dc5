"""Images decoded beside the event loop, on the cores there are, with bounds on what that takes.

Images wait in three lanes by the pixels that they declare, so that a small one never waits for a large one.
A lane that has much waiting refuses: work that takes long is told to come back, not queued.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from metastable.errors import DeadlineExceeded, Overloaded
from metastable.images import DecodedImage, ImageLimits, decode, pixels_of
from metastable.serving.backends.base import Served

T = TypeVar("T")
LATE = "the deadline passed before the image was decoded: allow more time, or send a smaller one"
SMALL, LARGE = 2**18, 2**22
"""Pixels from which an image is in the second lane, and in the third.

One of the third takes up to 20 bytes a pixel while it is decoded, 1 GB of 50 megapixels, so these come one
after the other.
"""
PATIENCE = 10.0  # seconds of work that may wait in a lane
_FOLLOW = 0.2
_INLINE = 50_000
"""Bytes of a file up to which its header is read in the event loop."""


class Decoder:
    """For one event loop.

    Args:
        limits: of one image.
        threads: that decode small images; others have some of their own.
        patience: seconds of work that may wait in a lane.
    """

    def __init__(self, limits: ImageLimits, *, threads: int, patience: float = PATIENCE) -> None:
        self._limits = limits
        self._headers = _Lane[int]("headers", 1, 0.01, patience)
        self._lanes = [
            _Lane[DecodedImage]("small", threads, 0.01, patience),
            _Lane[DecodedImage]("middle", max(1, threads // 2), 0.1, patience),
            _Lane[DecodedImage]("large", 1, 1.0, patience),
        ]

    async def __call__(self, data: bytes, served: Served, deadline: float | None) -> DecodedImage:
        """An image of the shape that is served.

        Args:
            deadline: on `time.monotonic`.

        Raises what `decode` raises, DeadlineExceeded, and Overloaded where its lane has too much waiting.
        """
        loop = asyncio.get_running_loop()
        ends = None if deadline is None else loop.time() + deadline - time.monotonic()
        channels, height, width = served.shape
        work = functools.partial(
            decode, data, size=(height, width), channels=channels, fit=served.fit, limits=self._limits
        )
        try:
            async with asyncio.timeout_at(ends):
                pixels = await self._pixels(data)
                lane = self._lanes[(pixels >= SMALL) + (pixels >= LARGE)]
                return await lane.run(work)
        except TimeoutError:
            raise DeadlineExceeded(LATE) from None

    async def _pixels(self, data: bytes) -> int:
        if len(data) > self._limits.max_bytes:
            return 0  # refused at once
        if len(data) <= _INLINE:
            return pixels_of(data, self._limits)
        return await self._headers.run(lambda: pixels_of(data, self._limits))

    def close(self) -> None:
        """Wait for nobody."""
        self._headers.close()
        for lane in self._lanes:
            lane.close()


class _Lane(Generic[T]):
    """Threads, and a bound on the seconds of work that wait for them.

    A thread cannot be stopped: what it does counts until it ends, whoever still waits for it.

    Args:
        each: seconds that one takes, until some have been seen.
    """

    def __init__(self, name: str, threads: int, each: float, patience: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"decode-{name}")
        self._threads, self._each, self._patience = threads, each, patience
        self._held = 0

    async def run(self, work: Callable[[], T]) -> T:
        wait = self._each * (self._held - self._threads + 1) / self._threads
        if wait > self._patience:
            raise Overloaded(
                f"{wait:.1f} s of other images as large wait to be decoded: try again then, or send a "
                "smaller one",
                wait,
            )
        self._held += 1
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work)
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _timed(self, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self._each += _FOLLOW * (time.perf_counter() - started - self._each)

    def _ended(self, running: asyncio.Future[T]) -> None:
        self._held -= 1
        if not running.cancelled():
            running.exception()  # seen, also where nobody waits any more

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
