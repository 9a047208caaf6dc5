"""The engines behind one door: start, memory, latency, goodput, cheap requests beside dear ones.

With Ray installed (`.venv-ray/bin/python -m metastable bench engines`) the cluster of one machine is among
them, with one replica on all cores, and with one and with two replicas on a core each.  The clients are on
the same machine and take a few hundredths of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import server
from benchmarks.asking import Answer, Asker
from benchmarks.overload import CLIENTS, busy, goodput, memory

CORES = os.cpu_count() or 1
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "local": ("local", ()),
    "torchserve": ("torchserve", ()),
    "ray": ("ray", ("--replica-cpus", str(CORES))),
    "ray-1-core": ("ray", ()),
    "ray-2-replicas": ("ray", ("--replicas", "2")),
}
"""Engine and further options by name: Ray with one replica on all cores, with one on a core, with two."""


@dataclass(frozen=True)
class EnginesConfig:
    """
    Attributes:
        setting: of what is asked for latency and goodput.
        alone: requests one after another; clients: at once, of the goodput.
        seconds: of the goodput, and of the mixed load.
        cheap, rate: setting and requests a second of the cheap ones in the mixed load.
        dear, dear_clients: setting and clients of the dear ones beside them, each asking again at once.
    """

    setting: str = "fast"
    alone: int = 100
    clients: int = 16
    seconds: float = 20.0
    cheap: str = "none"
    rate: float = 10.0
    dear: str = "accurate"
    dear_clients: int = 2


def measure(
    bundle: Path, image: bytes, work: Path, config: EnginesConfig, names: Sequence[str], picture: Path | None
) -> list[dict[str, Any]]:
    """A row for each name of ROWS; `picture`: where they are drawn."""
    rows = []
    for name in names:
        print(name, flush=True)
        engine, more = ROWS[name]
        began = time.monotonic()
        with server.serving(bundle, work / name, {}, engine=engine, more=more) as url:
            start = time.monotonic() - began
            found = asyncio.run(_measured(url, image, config))
        rows.append({"engine": name, "start_s": round(start, 1), **found})
    if picture is not None:
        draw(rows, config, picture)
    return rows


async def _measured(url: str, image: bytes, config: EnginesConfig) -> dict[str, Any]:
    async with contextlib.AsyncExitStack() as stack:

        def asker(setting: str) -> Any:
            """Asks for a setting, from one address after another: the door bounds what one has under way."""
            headers = {"X-Metastable-Setting": setting}
            made = [Asker(url, image, headers, local=f"127.0.0.{i + 2}") for i in range(CLIENTS)]
            for one in made:
                stack.push_async_callback(one.close)
            turns = itertools.cycle(made)

            async def ask() -> Answer:
                return await next(turns)()

            return ask

        idle = memory()
        ask, cheap, dear = (asker(name) for name in (config.setting, config.cheap, config.dear))
        alone = [(await ask()).seconds for _ in range(config.alone + 5)][5:]
        cheap_alone = await _paced(cheap, config.rate, config.seconds)
        rate = goodput(await busy(ask, config.clients, config.seconds), config.seconds)
        stop = asyncio.Event()
        beside = [asyncio.create_task(_again(dear, stop)) for _ in range(config.dear_clients)]
        await asyncio.sleep(config.seconds / 4)
        mixed = await _paced(cheap, config.rate, config.seconds)
        stop.set()
        dears = sum(await asyncio.gather(*beside))
        return {
            "memory_mb": round(idle),
            "memory_after_mb": round(memory()),
            "p50_ms": _ms(statistics.median(alone)),
            "p99_ms": _ms(float(np.quantile(alone, 0.99))),
            "goodput": round(rate, 2),
            "cheap_alone_p99_ms": _ms(float(np.quantile(cheap_alone, 0.99))),
            "cheap_mixed_p99_ms": _ms(float(np.quantile(mixed, 0.99))),
            "dear_answers": dears,
        }


async def _paced(ask: Any, rate: float, seconds: float) -> list[float]:
    """The seconds of requests that come at a rate, whatever becomes of those before."""
    asked: list[asyncio.Task[Answer]] = []
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        asked.append(asyncio.create_task(ask()))
        await asyncio.sleep(max(0.0, begun + len(asked) / rate - time.monotonic()))
    return [one.seconds if one.good else float("inf") for one in await asyncio.gather(*asked)]


async def _again(ask: Any, stop: asyncio.Event) -> int:
    count = 0
    while not stop.is_set():
        count += (await ask()).good
    return count


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def draw(rows: Sequence[dict[str, Any]], config: EnginesConfig, path: Path) -> None:
    """Latency alone and goodput, an engine a bar."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    titles = ("p50 alone, ms", "answers a second", f"p99 of `{config.cheap}` beside `{config.dear}`, ms")
    for axes, key, title in zip(panels, ("p50_ms", "goodput", "cheap_mixed_p99_ms"), titles, strict=True):
        axes.barh([row["engine"] for row in rows], [row[key] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def fill(one: argparse.ArgumentParser) -> None:
    """Make the parser that of this benchmark."""
    one.add_argument("--image", type=Path, default=Path("samples/cat.png"), help="what is asked")
    one.add_argument("--seconds", type=float, default=EnginesConfig.seconds, help="of each load")
    one.add_argument("--only", action="append", choices=tuple(ROWS), help="a row (default: all there can be)")
    one.add_argument("--work", type=Path, default=Path("runs/engines"), help="folders of the servers")


def run(args: argparse.Namespace) -> dict[str, Any]:
    there = importlib.util.find_spec("ray") is not None
    names = args.only or [name for name, (engine, _) in ROWS.items() if there or engine != "ray"]
    config = EnginesConfig(seconds=args.seconds)
    picture = args.out.with_suffix(".png") if args.out else None
    rows = measure(args.bundle, args.image.read_bytes(), args.work, config, names, picture)
    return {"rows": rows, "cores": CORES}
