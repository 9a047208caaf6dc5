"""Mixed load: does a stream of cheap requests suffer from dear ones beside it?

An open-loop stream of `fast` requests (Poisson arrivals, the same in every phase) is sent to the
real server alone; with `accurate` requests mixed in, one for every ten; and with those to a server
that batches statically (the same engine, but a batch is answered as a whole).  Latency counts from
the moment a request was due, so a stalled server cannot hide behind requests not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from benchmarks.server import serving
from metastable.errors import MetastableError

CHEAP, DEAR = "fast", "accurate"
STATIC = {"continuousBatching": "false", "batchSize": "8", "maxBatchDelay": "10"}
PHASES = ("alone", "mixed", "static")


@dataclass(frozen=True)
class Arrival:
    """A request that is due `at` seconds after the start of its phase."""

    at: float
    setting: str


def schedule(rate: float, seconds: float, share: float, seed: int) -> list[Arrival]:
    """Poisson arrivals: `rate` a second of the cheap setting, and `share` times that of the dear one.

    The cheap ones are the same whatever the share.
    """
    arrivals = []
    for setting, per_second in ((CHEAP, rate), (DEAR, rate * share)):
        rng, at = random.Random(f"{seed} {setting}"), 0.0
        while per_second and (at := at + rng.expovariate(per_second)) < seconds:
            arrivals.append(Arrival(at, setting))
    return sorted(arrivals, key=lambda a: a.at)


async def play(url: str, arrivals: list[Arrival], images: list[bytes]) -> list[tuple[str, float, int]]:
    """Send every request when it is due: (setting, seconds from then to the answer, status)."""
    limits = httpx.Limits(max_connections=256)
    async with httpx.AsyncClient(timeout=300, limits=limits, trust_env=False) as client:
        start = time.perf_counter()

        async def one(number: int, arrival: Arrival) -> tuple[str, float, int]:
            await asyncio.sleep(max(0.0, start + arrival.at - time.perf_counter()))
            reply = await client.post(
                url,
                content=images[number % len(images)],
                headers={
                    "Content-Type": "application/octet-stream",
                    "X-Metastable-Setting": arrival.setting,
                },
            )
            return arrival.setting, time.perf_counter() - start - arrival.at, reply.status_code

        return list(await asyncio.gather(*(one(i, a) for i, a in enumerate(arrivals))))


def alone_seconds(url: str, images: list[bytes], setting: str) -> float:
    """Mean seconds of a request of `setting` on an idle server, over the images; each is asked for twice."""
    times = []
    with httpx.Client(timeout=300, trust_env=False) as client:
        for turn, image in [(turn, image) for turn in range(2) for image in images]:
            started = time.perf_counter()
            client.post(
                url,
                content=image,
                headers={"Content-Type": "application/octet-stream", "X-Metastable-Setting": setting},
            ).raise_for_status()
            if turn:
                times.append(time.perf_counter() - started)
    return statistics.fmean(times)


def measure(
    bundle: Path, images: Path, work: Path, *, rounds: int, seconds: float, utilisation: float, share: float
) -> dict[str, Any]:
    """Run every phase `rounds` times, interleaved, and compare the latencies of the cheap requests.

    Ratios of p99 are taken within a round, which meets the same state of the machine, and their
    median is reported: a moment in which the machine did something else spoils one round.

    Args:
        utilisation: of the machine by the cheap stream alone; it sets the rate.
        share: dear requests for every cheap one.
    """
    samples = [path.read_bytes() for path in sorted(images.glob("*.png"))]
    if not samples:
        raise MetastableError(f"there are no PNG images in {images}")
    spent: dict[str, list[list[float]]] = {phase: [[] for _ in range(rounds)] for phase in PHASES}
    dear: dict[str, list[float]] = {phase: [] for phase in PHASES}
    refused = dict.fromkeys(PHASES, 0)
    with contextlib.ExitStack() as servers:
        joining = servers.enter_context(serving(bundle, work / "continuous", {}))
        batching = servers.enter_context(serving(bundle, work / "static", STATIC))
        each = {setting: alone_seconds(joining, samples, setting) for setting in (CHEAP, DEAR)}
        alone_seconds(batching, samples, CHEAP)  # warm as well
        rate = utilisation / each[CHEAP]
        turns = [(turn, phase) for turn in range(rounds) for phase in PHASES]
        for turn, phase in tqdm(turns, desc="phases"):
            arrivals = schedule(rate, seconds, 0.0 if phase == "alone" else share, seed=turn)
            url = batching if phase == "static" else joining
            for setting, took, status in asyncio.run(play(url, arrivals, samples)):
                refused[phase] += status != 200
                if status == 200:
                    (spent[phase][turn] if setting == CHEAP else dear[phase]).append(1e3 * took)
    p99 = {phase: [_quantile(values, 0.99) for values in spent[phase]] for phase in PHASES}
    rows = []
    for phase in PHASES:
        everything = [value for values in spent[phase] for value in values]
        rows.append(
            {
                "phase": phase,
                "n": len(everything),
                "p50_ms": _quantile(everything, 0.5),
                "p99_ms": _quantile(everything, 0.99),
                "p99_ms_by_round": p99[phase],
                "dear_p50_ms": _quantile(dear[phase], 0.5),
                "refused": refused[phase],
            }
        )

    def over_alone(phase: str) -> float:
        return round(statistics.median(a / b for a, b in zip(p99[phase], p99["alone"], strict=True)), 2)

    return {
        "rows": rows,
        "rate": round(rate, 3),
        "alone_ms": {setting: round(1e3 * value, 1) for setting, value in each.items()},
        "p99_mixed_over_alone": over_alone("mixed"),
        "p99_static_over_alone": over_alone("static"),
    }


def _quantile(values: list[float], q: float) -> float:
    """The smallest value that is at least as large as the share q of all; 0.0 of none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 1) if ordered else 0.0
