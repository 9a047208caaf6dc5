"""How many replicas a rate and a latency need: a prediction, and a simulation with the real engine beside it.

    metastable bench scaling --record docs/results/scaling-costs.json    # what this machine takes
    metastable bench scaling --rate 100 --p99 1                          # the replicas that this needs
    metastable bench scaling --out docs/results/scaling.json             # prediction and simulation

docs/scaling.md says what came of it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import contenders, scaling_costs
from benchmarks.scaling_costs import Recorded
from benchmarks.scaling_model import Capacity, capacity
from benchmarks.scaling_requests import Mix, mix_of
from benchmarks.scaling_simulation import ROUTERS, Fleet, simulate
from metastable import bundle, console
from metastable.bundle import Bundle
from metastable.errors import MetastableError
from metastable.evaluation import cli
from metastable.evaluation.same import same_run

SETTINGS = ("none", "fast", "balanced", "accurate", "energy")
"""Whose costs are recorded: those of the shipped bundle that are for use."""
LOADS = (0.3, 0.6, 0.8, 0.9, 1.0, 2.0)
"""Offered rates, in units of what all replicas answer at most."""
SERVES = "requests"  # the router of Ray Serve
COMPARED, COMPARED_LOADS = 16, (0.6, 0.9)
"""Replicas and loads at which the other routers are beside it."""


@dataclass(frozen=True)
class ScalingConfig:
    """What the rows of a folder depend on.

    Attributes:
        costs: of every replica, and `mix`, shares of requests by setting.
        attacked: share of images that are.
        seconds, requests: of every point the lengths, of which the longer counts; seconds are simulated ones.
    """

    costs: Recorded
    mix: dict[str, float]
    attacked: float
    seconds: float
    requests: int
    seed: int


@dataclass(frozen=True)
class Point:
    """One simulation: `load` in units of what all replicas answer at most."""

    replicas: int
    router: str
    load: float


def points(replicas: Sequence[int]) -> Iterator[Point]:
    """All that are simulated."""
    for count in replicas:
        for load in LOADS:
            yield Point(count, SERVES, load)
    if COMPARED in replicas:
        for router in ROUTERS:
            for load in COMPARED_LOADS:
                if router != SERVES:
                    yield Point(COMPARED, router, load)


def measure(
    loaded: Bundle,
    fleet: Fleet,
    config: ScalingConfig,
    replicas: Sequence[int],
    work: Path,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Capacity, prediction and simulation; rows that lie in `work` are taken from there.

    A page with both tables is written beside the picture.

    Raises DataError if those are of another configuration.
    """
    work.mkdir(parents=True, exist_ok=True)
    same_run(work / "config.json", config)
    found = capacity(fleet, config.seed)
    rows = []
    for point in tqdm(list(points(replicas)), desc="fleets", unit="point"):
        path = work / f"{point.replicas}-{point.router}-{point.load}.json"
        if not path.exists():
            path.write_text(json.dumps(_row(fleet, found, point, config)) + "\n")
        rows.append(json.loads(path.read_text()))
    result = {
        **described(loaded, fleet, found, config),
        "bookkeeping_ms": bookkeeping(fleet, found.rate / 2, config.seed),
        "rows": rows,
        "seconds": config.seconds,
        "requests": config.requests,
    }
    if picture is not None:
        draw(rows, found, picture)
        picture.with_suffix(".md").write_text(table(result))
    return result


def _row(fleet: Fleet, found: Capacity, point: Point, config: ScalingConfig) -> dict[str, Any]:
    rate = point.load * point.replicas * found.rate
    seconds = max(config.seconds, config.requests / rate)
    row = simulate(fleet, point.replicas, rate, point.router, seconds, config.seed)
    predicted = 1e3 * found.latency(0.99, rate, point.replicas)
    return {
        **row,
        "load": point.load,
        "predicted_p99_ms": predicted if math.isfinite(predicted) else None,
        "predicted_goodput": min(rate, point.replicas * found.rate),
    }


def described(loaded: Bundle, fleet: Fleet, found: Capacity, config: ScalingConfig) -> dict[str, Any]:
    """Capacity of one replica, of the mix and of every setting by itself."""
    alone = {
        name: capacity(
            Fleet(fleet.recorded, Mix(((loaded.settings[name], 1.0),), config.attacked)), config.seed
        )
        for name in SETTINGS
        if name in loaded.settings.names and (name in config.costs.curves or name == "none")
    }
    return {
        "costs": {key: value for key, value in asdict(config.costs).items() if key != "curves"},
        "mix": config.mix,
        "attacked": config.attacked,
        "seed": config.seed,
        "capacity": [_of_one("the mix", found), *(_of_one(name, one) for name, one in alone.items())],
    }


def _of_one(name: str, found: Capacity) -> dict[str, Any]:
    return {
        "setting": name,
        "chains": float(found.chains.mean()),
        "alone_ms": 1e3 * float(found.alone.mean()),
        "alone_p50_ms": 1e3 * found.latency(0.5, 0.0, 1),
        "alone_p99_ms": 1e3 * found.latency(0.99, 0.0, 1),
        "work_ms": 1e3 * float(found.work.mean()),
        "requests_a_second": found.rate,
    }


def bookkeeping(fleet: Fleet, rate: float, seed: int, count: int = 300) -> float:
    """Milliseconds of a processor that a request takes where nothing is computed: the engine's own, mostly.

    The simulation's share is in it.
    """
    began = time.process_time()
    simulate(fleet, 1, rate, SERVES, count / rate, seed)
    return 1e3 * (time.process_time() - began) / count


def table(result: dict[str, Any]) -> str:
    """Capacity, and what was simulated beside what was predicted, in Markdown."""
    lines = [
        "| one replica | chains | ms alone: mean | median | 99 of 100 | ms of work | requests a second |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["capacity"]:
        alone = " | ".join(f"{row[key]:.0f}" for key in ("alone_ms", "alone_p50_ms", "alone_p99_ms"))
        lines.append(
            f"| {row['setting']} | {row['chains']:.1f} | {alone} | {row['work_ms']:.1f} "
            f"| {row['requests_a_second']:.1f} |"
        )
    lines += [
        "",
        "| replicas, router | load | requests a second | goodput, predicted | p50, s | p99, s | predicted "
        "| refused, to come again after | busy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        predicted = row["predicted_p99_ms"]
        again = f", {row['retry_after_s']:.1f} s" if row["refused"] else ""
        lines.append(
            f"| {row['replicas']}, {row['router']} | {row['load']} | {row['rate']:.1f} "
            f"| {row['goodput']:.1f}, {row['predicted_goodput']:.1f} "
            f"| {row['p50_ms'] / 1e3:.2f} | {row['p99_ms'] / 1e3:.2f} "
            f"| {'none' if predicted is None else f'{predicted / 1e3:.2f}'} "
            f"| {row['refused']:.1%}{again} | {row['busy']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]], found: Capacity, path: Path) -> None:
    """p99 and goodput over the offered rate: points are simulated, lines are predicted."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    latency, goodput = figure.subplots(1, 2)
    counts = sorted({row["replicas"] for row in rows})
    for number, count in enumerate(counts):
        color = f"C{number}"
        mine = [row for row in rows if row["replicas"] == count and row["router"] == SERVES]
        rates = [row["rate"] for row in mine]
        latency.plot(rates, [row["p99_ms"] / 1e3 for row in mine], "o", color=color, label=f"{count}")
        goodput.plot(rates, [row["goodput"] for row in mine], "o", color=color, label=f"{count}")
        most = count * found.rate
        fine = [most * i / 100 for i in range(20, 201)]
        latency.plot(fine, [found.latency(0.99, rate, count) for rate in fine], color=color)
        goodput.plot(fine, [min(rate, most) for rate in fine], color=color)
    for axes, name in ((latency, "99 of 100 answered within, s"), (goodput, "answers a second")):
        axes.set(xscale="log", yscale="log", xlabel="requests a second", ylabel=name)
        axes.legend(title="replicas")
    highest = max(row["p99_ms"] / 1e3 for row in rows)
    latency.set_ylim(found.latency(0.99, 0.0, 1) / 2, 2 * highest)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def fill(one: argparse.ArgumentParser) -> None:
    """Make the parser that of this benchmark."""
    costs = Path("docs/results/scaling-costs.json")
    one.add_argument("--record", type=Path, metavar="FILE", help="measure this machine's costs, and no more")
    one.add_argument("--runner", default="openvino", help=f"of --record: {', '.join(contenders.NAMES)}")
    one.add_argument("--rounds", type=cli.from_one, default=16, help="of --record, of which the least counts")
    one.add_argument("--costs", type=Path, default=costs, metavar="FILE", help="what --record wrote")
    one.add_argument("--rate", type=float, help="requests a second that replicas are wanted for; and --p99")
    one.add_argument("--p99", type=float, help="seconds within which 99 of 100 are to be answered")
    one.add_argument(
        "--mix", default="none=0.2,fast=0.5,balanced=0.25,accurate=0.05", help="shares of requests by setting"
    )
    one.add_argument("--attacked", type=float, default=0.1, help="share of images that are")
    one.add_argument("--replicas", default="1,4,16,64", help="numbers of them, with commas between")
    one.add_argument("--seconds", type=float, default=10.0, help="simulated, of a point")
    one.add_argument("--requests", type=cli.from_one, default=3000, help="of a point, at least")
    one.add_argument("--seed", type=console.seed, default=0, help="of requests and routers")
    one.add_argument("--work", type=Path, default=Path("runs/scaling"), help="folder of the rows; resumed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    if args.record is not None:
        return _record(args, loaded)
    recorded = scaling_costs.read(args.costs)
    mix = mix_of(loaded, args.mix, args.attacked)
    fleet = Fleet(recorded, mix)
    config = ScalingConfig(recorded, mix.named, args.attacked, args.seconds, args.requests, args.seed)
    if (args.rate is None) != (args.p99 is None):
        raise MetastableError("--rate and --p99 go together: replicas are for both")
    if args.rate is not None:
        return _planned(fleet, args)
    try:
        replicas = [cli.from_one(count) for count in args.replicas.split(",")]
    except ValueError:
        raise MetastableError(f"--replicas needs whole numbers like 1,4,16, not {args.replicas!r}") from None
    picture = args.out.with_suffix(".png") if args.out else None
    return measure(loaded, fleet, config, replicas, args.work, picture)


def _record(args: argparse.Namespace, loaded: Bundle) -> dict[str, Any]:
    runner = contenders.make(loaded, (args.runner,), torch.empty(0, *loaded.shape))[args.runner]
    settings = [loaded.settings[name] for name in SETTINGS if name in loaded.settings.names]
    found = scaling_costs.record(
        loaded, runner, settings, args.rounds, name=args.runner, machine=cli.machine()
    )
    found.write(args.record)
    rows = [
        {"work": work, **{f"{size} at once, ms": round(1e3 * seconds, 3) for size, seconds in curve.items()}}
        for work, curve in found.curves.items()
    ]
    return {"rows": rows, "runner": args.runner, "rounds": args.rounds}


def _planned(fleet: Fleet, args: argparse.Namespace) -> dict[str, Any]:
    if not (0 < args.rate < math.inf and 0 < args.p99 < math.inf):
        raise MetastableError("--rate and --p99 must be above 0")
    found = capacity(fleet, args.seed)
    count = found.replicas(args.rate, args.p99)
    return {
        "rate": args.rate,
        "p99_s": args.p99,
        "replicas": count,
        "predicted_p99_s": found.latency(0.99, args.rate, count),
        "alone": args.rate / count * float(found.alone.mean()),
        **_of_one("the mix", found),
    }
