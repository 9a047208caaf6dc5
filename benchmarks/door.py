"""What HTTP adds: the door beside the same backend asked without it, in turns, in one process.

The client is in this process too, on a thread of its own, so its own time counts as the door's; it costs
little (`asking`).
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any

from prometheus_client import CollectorRegistry
from tqdm import tqdm

from benchmarks.asking import Asker
from metastable.bundle import Bundle
from metastable.engine.runners import Runner
from metastable.errors import MetastableError
from metastable.images import ImageLimits
from metastable.serving.backends.base import Backend
from metastable.serving.backends.local import Local
from metastable.serving.door import server
from metastable.serving.door.answering import Answerer
from metastable.serving.door.app import build
from metastable.serving.door.decoding import Decoder
from metastable.serving.door.intake import Intake
from metastable.serving.door.models import Models
from metastable.serving.door.shadow import Shadows
from metastable.serving.door.steering import Chosen
from metastable.serving.door.stopping import Stop
from metastable.serving.metrics import Metrics
from metastable.serving.options import RequestOptions
from metastable.serving.policy.counts import Counts
from metastable.serving.policy.values import Policy


@contextlib.contextmanager
def _listening(backend: Backend, metrics: Metrics) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    stop, ready = Stop(), Future[tuple[str, asyncio.AbstractEventLoop]]()

    def told(url: str) -> None:
        ready.set_result((url, asyncio.get_running_loop()))

    app = build(backend, Intake(), stop, metrics)
    arguments = {"stop": stop, "port": 0, "on_ready": told}
    thread = threading.Thread(target=server.run, args=(app,), kwargs=arguments)
    thread.start()
    try:
        yield ready.result(60)
    finally:
        stop.ask(grace=False)
        thread.join()


def measure(
    bundle: Bundle, runner: Runner, image: bytes, setting: str, *, pairs: int, rounds: int, at_once: int
) -> dict[str, Any]:
    """Milliseconds that HTTP adds to an answer, and its share of the answers a second at saturation.

    Args:
        pairs: answers one after the other, each way, in turns.
        rounds: of `pairs` answers each way with `at_once` under way.
    """
    if setting not in bundle.settings.names:
        raise MetastableError(f"--setting must be one of {', '.join(bundle.settings.names)}")
    metrics = Metrics(settings=bundle.settings.names)
    backend = Local(bundle, runner, metrics)
    with _listening(backend, metrics) as (url, loop):
        there = _There(backend, loop, image, RequestOptions(setting, 3, None, None))
        asker = Asker(f"{url}/classify?setting={setting}", image, {})
        with asyncio.Runner() as client:  # apart from the loop that answers

            def over_http() -> float:
                return client.run(asker.seconds())

            for ask in (there.one, over_http):
                ask()
            one = [(there.one(), over_http()) for _ in tqdm(range(pairs), desc="pairs")]
            many = [
                (there.many(pairs, at_once), client.run(_crowd(asker.seconds, pairs, at_once)))
                for _ in tqdm(range(rounds), desc="rounds")
            ]
            client.run(asker.close())
    added = [1e3 * (http - direct) for direct, http in one]
    return {
        "setting": setting,
        "pairs": pairs,
        "ms_direct": round(1e3 * statistics.median(direct for direct, _ in one), 3),
        "ms_added": round(statistics.median(added), 3),
        "ms_added_quartiles": [round(value, 3) for value in statistics.quantiles(added)[::2]],
        "at_once": at_once,
        "throughput": round(statistics.median(direct / http for direct, http in many), 4),
        "throughputs": [round(direct / http, 4) for direct, http in many],
    }


class _There:
    """The backend without HTTP, asked on the loop that it belongs to; seconds."""

    def __init__(
        self, backend: Local, loop: asyncio.AbstractEventLoop, image: bytes, options: RequestOptions
    ) -> None:
        self._loop, self._image = loop, image
        self._chosen = Chosen(backend, options, Policy(), None)
        counts = Counts(CollectorRegistry())
        shadows = Shadows(Models([backend]), counts)
        self._answerer = Answerer(Decoder(ImageLimits(), threads=2), shadows, counts, Metrics())

    def one(self) -> float:
        return asyncio.run_coroutine_threadsafe(self._timed(), self._loop).result()

    def many(self, count: int, at_once: int) -> float:
        return asyncio.run_coroutine_threadsafe(_crowd(self._one, count, at_once), self._loop).result()

    async def _timed(self) -> float:
        started = time.perf_counter()
        await self._one()
        return time.perf_counter() - started

    async def _one(self) -> None:
        found = await self._answerer.one(uuid.uuid4().hex, self._image, self._chosen, time.monotonic())
        if found.refusal is not None:
            raise MetastableError(f"an answer was refused: {found.refusal.message}")


async def _crowd(ask: Callable[[], Awaitable[object]], count: int, at_once: int) -> float:
    """Seconds of `count` questions with so many under way."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await ask()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return time.perf_counter() - started
