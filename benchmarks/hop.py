"""What the door adds to an answer of TorchServe, and takes of its answers a second, paired in one server.

    through the door: a PNG over TCP, which is checked, decoded and handed on as exact pixels
    past it:          the same PNG to TorchServe's own socket, with the key that only the door has

A client that costs little (`asking`) asks both ways in turns.  The setting costs little too, so that the hop
shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import server
from benchmarks.asking import Asker

WARM = 20
Ask = Callable[[], Awaitable[float]]


def measure(
    bundle: Path, image: bytes, work: Path, setting: str, *, pairs: int, rounds: int, at_once: int
) -> dict[str, Any]:
    """Milliseconds at the median of `pairs` answers each way, and the ratio of answers a second.

    Args:
        rounds: of throughput, `at_once` requests under way, in turns.
    """
    with server.serving(bundle, work, {}) as url:
        return asyncio.run(_measured(url, image, work / "run", setting, pairs, rounds, at_once))


async def _measured(
    url: str, image: bytes, run: Path, setting: str, pairs: int, rounds: int, at_once: int
) -> dict[str, Any]:
    scratch = scratch_of((run / "config.properties").read_text())
    named = {"X-Metastable-Setting": setting}
    key = json.loads((run / "key_file.json").read_text())["inference"]["key"]
    past = named | {"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"}
    at = "http://torchserve/predictions/metastable"
    async with contextlib.AsyncExitStack() as stack:
        ways: dict[str, Ask] = {}
        for way, asker in (
            ("door", Asker(url, image, named)),
            ("past", Asker(at, image, past, socket=scratch / "inference.sock")),
        ):
            stack.push_async_callback(asker.close)
            ways[way] = asker.seconds
        for ask in ways.values():
            for _ in range(WARM):
                await ask()
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for i in tqdm(range(pairs), desc="pairs"):
            for way in sorted(ways, reverse=bool(i % 2)):
                spent[way].append(1e3 * await ways[way]())
        ratios = []
        for i in tqdm(range(rounds), desc="rounds"):
            rates = {}
            for way in sorted(ways, reverse=bool(i % 2)):
                rates[way] = await _rate(ways[way], at_once, 8 * at_once)
            ratios.append(rates["door"] / rates["past"])
    more = [a - b for a, b in zip(spent["door"], spent["past"], strict=True)]
    return {
        "setting": setting,
        "pairs": pairs,
        "median_ms": {way: statistics.median(values) for way, values in spent.items()},
        "door_adds_ms": statistics.median(more),
        "door_adds_quartiles_ms": statistics.quantiles(more, n=4)[::2],
        "at_once": at_once,
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratios": ratios,
    }


def scratch_of(config: str) -> Path:
    """The folder of TorchServe's sockets, from what the launcher wrote for it."""
    found = re.search(r"^inference_address=unix:(.*)/", config, re.MULTILINE)
    assert found is not None, "the launcher writes it"
    return Path(found[1])


async def _rate(ask: Ask, at_once: int, count: int) -> float:
    """Answers a second with so many under way."""
    left = count

    async def one() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask()

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(at_once)))
    return count / (time.perf_counter() - begun)
