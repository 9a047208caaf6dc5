"""More requests than the machine can answer: what it still answers, its memory, and when it is itself again.

First as many clients as keep it busy, each asking again when it has its answer: the best goodput.  Then
requests at a multiple of that rate, whatever becomes of those before.  Then one request after the other,
until answers take about as long as they did when nobody else asked.  Then the best goodput once more: a
machine is not always as fast, so what is kept is a share of the mean of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import server
from benchmarks.asking import PATIENCE, Answer, Asker

CLIENTS = 16
"""Addresses that requests come from: the door bounds what one of them may have under way."""
AGAIN = 2.0
"""Times the time of an answer without company within which the server counts as recovered."""


@dataclass(frozen=True)
class OverloadConfig:
    """
    Attributes:
        engine: what answers behind the door.
        setting: of every request, and `deadline_ms` its deadline; 0 for none.
        clients: at once, of the best goodput.
        times: the rate of the overload, in units of the best goodput.
        seconds: of the overload; the best goodput is that of a third of them before, and of a third after.
    """

    engine: str
    setting: str
    deadline_ms: int = 0
    clients: int = 16
    times: float = 3.0
    seconds: float = 60.0


def measure(
    bundle: Path, image: bytes, work: Path, config: OverloadConfig, picture: Path | None
) -> dict[str, Any]:
    """The figures; `picture`: where the course is drawn."""
    with server.serving(bundle, work / config.engine, {}, engine=config.engine) as url:
        return asyncio.run(_measured(url, image, config, picture))


async def _measured(url: str, image: bytes, config: OverloadConfig, picture: Path | None) -> dict[str, Any]:
    headers = {"X-Metastable-Setting": config.setting}
    if config.deadline_ms:
        headers["X-Metastable-Deadline-Ms"] = str(config.deadline_ms)
    async with contextlib.AsyncExitStack() as stack:
        askers = [Asker(url, image, headers, local=f"127.0.0.{i + 2}") for i in range(CLIENTS)]
        for asker in askers:
            stack.push_async_callback(asker.close)
        turns = itertools.cycle(askers)

        async def ask() -> Answer:
            return await next(turns)()

        alone = statistics.median([(await ask()).seconds for _ in range(12)][2:])
        used, begun = time.process_time(), time.monotonic()
        first = goodput(await busy(ask, config.clients, config.seconds / 3), config.seconds / 3)
        client = {"best": (time.process_time() - used) / (time.monotonic() - begun)}
        seen = [memory()]
        used, begun = time.process_time(), time.monotonic()
        crowd = asyncio.create_task(_crowd(ask, config.times * first, config.seconds))
        while not crowd.done():
            await asyncio.wait([crowd], timeout=1)
            seen.append(memory())
        under_way = crowd.result()
        ended = time.monotonic()
        client["overload"] = (time.process_time() - used) / (ended - begun)
        recovered = await _recovery(ask, AGAIN * alone)
        answers = await asyncio.gather(*under_way)
        second = goodput(await busy(ask, config.clients, config.seconds / 3), config.seconds / 3)
    best = (first + second) / 2
    within = [one for one in answers if one.at <= ended]
    kept = goodput(within, config.seconds)
    if picture is not None:
        draw(picture, answers, seen, begun, ended, best)
    good = [one.seconds for one in answers if one.good]
    return {
        "engine": config.engine,
        "setting": config.setting,
        "deadline_ms": config.deadline_ms,
        "alone_s": alone,
        "best_goodput": best,
        "best_goodput_before_and_after": [first, second],
        "requests_a_second": config.times * first,
        "seconds": config.seconds,
        "goodput": kept,
        "goodput_share": kept / best,
        "statuses": dict(Counter(one.status for one in answers)),
        "median_s": statistics.median(good) if good else None,
        "refused_median_s": _median([one.seconds for one in answers if one.status in ("429", "503")]),
        "memory_mb": {"before": seen[0], "most": max(seen), "after": seen[-1]},
        "recovered_s": recovered,
        "client_cores": client,
    }


def goodput(answers: Sequence[Answer], seconds: float) -> float:
    """Answers with a verdict a second."""
    return sum(one.good for one in answers) / seconds


async def busy(ask: Any, clients: int, seconds: float) -> list[Answer]:
    """What so many clients get, each of which asks again at once, after as long to begin with."""
    begins = time.monotonic() + seconds / 4
    found: list[Answer] = []

    async def one() -> None:
        while time.monotonic() < begins + seconds:
            found.append(await ask())

    await asyncio.gather(*(one() for _ in range(clients)))
    return [one for one in found if begins <= one.at < begins + seconds]


async def _crowd(ask: Any, rate: float, seconds: float) -> list[asyncio.Task[Answer]]:
    """Ask at a rate for so long; the requests, of which some are still under way."""
    begun = time.monotonic()
    asked: list[asyncio.Task[Answer]] = []
    with tqdm(total=int(rate * seconds), desc="overload", unit="request") as bar:
        while (passed := time.monotonic() - begun) < seconds:
            while len(asked) < rate * passed:
                asked.append(asyncio.create_task(ask()))
                bar.update()
            await asyncio.sleep(min(0.005, 1 / rate))
    return asked


async def _recovery(ask: Any, wanted: float) -> float | None:
    """Seconds until an answer takes no longer than `wanted`; None if that is never."""
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE:
        before = time.monotonic()
        answer = await ask()
        if answer.good and answer.seconds <= wanted:
            return before - begun
        await asyncio.sleep(0.1)
    return None


def memory() -> float:
    """MB of all that the server runs."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def draw(
    path: Path, answers: Sequence[Answer], seen: Sequence[float], begun: float, ended: float, best: float
) -> None:
    """Verdicts and refusals in each second, and the server's memory."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for label, chosen in (("verdicts", "200"), ("refused", "503"), ("late", "504")):
        counts = Counter(int(one.at - begun) for one in answers if one.status == chosen)
        if counts:
            seconds = range(max(counts) + 1)
            axes.plot(seconds, [counts[i] for i in seconds], label=f"{label} ({chosen})")
    axes.axhline(best, color="gray", linestyle="--", label="best goodput")
    axes.axvline(ended - begun, color="gray", linewidth=0.5)
    axes.set(xlabel="seconds", ylabel="answers a second")
    axes.legend(loc="upper right")
    beside = axes.twinx()
    beside.plot(range(len(seen)), seen, color="black", linewidth=0.8)
    beside.set(ylabel="memory of the server, MB", ylim=(0, 1.3 * max(seen)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
