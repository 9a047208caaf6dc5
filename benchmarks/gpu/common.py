"""What the scripts for a GPU share: arguments, timing, and how they end."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from metastable import bundle
from metastable.bundle import Bundle, shipped
from metastable.evaluation.cli import machine
from metastable.training.run import device_of

Work = Callable[[], object]
Rows = list[dict[str, Any]]


def add_arguments(made: argparse.ArgumentParser, doc: str | None) -> None:
    """The arguments of every script."""
    made.description = doc
    made.add_argument(
        "--bundle",
        type=shipped.path,
        default=Path("model_store/cifar10"),
        help="folder of the bundle, or a shipped one's name",
    )
    made.add_argument("--device", default="auto", help="cuda, cpu; auto takes CUDA where there is one")
    made.add_argument("--tiny", action="store_true", help="the dry run: everything, at a size for a CPU")
    made.add_argument(
        "--out",
        type=Path,
        help="JSON file, written after every part; by default in the folder that $OUT names",
    )


def save(args: argparse.Namespace, result: dict[str, Any], *, finished: bool = False) -> str:
    """Write what there is of a result so far to the result's file, if there is one; returns the JSON line.

    The file is replaced as a whole, so that a run that is broken off leaves what was saved last.
    """
    line = json.dumps({**result, "device": _named(args.device), "tiny": args.tiny, "finished": finished})
    if path := out_path(args, result["command"]):
        replace(path, line + "\n")
    return line


def replace(path: Path, text: str) -> None:
    """Write a file as a whole: a reader sees what it held before, or all of this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


@functools.cache
def _named(device: str) -> str:
    """Asked once: after a fault a GPU does not say its name any more."""
    return device_name(device_of(device))


def out_path(args: argparse.Namespace, command: str) -> Path | None:
    """The file of a result: --out, or one in the folder named by the environment variable OUT."""
    if args.out or not os.environ.get("OUT"):
        return Path(args.out) if args.out else None
    return Path(os.environ["OUT"]) / f"{command.replace(' ', '-')}.json"


def finish(args: argparse.Namespace, result: dict[str, Any], columns: Sequence[str]) -> None:
    """Save the result; print the rows' `columns` as a table, and the line of JSON last."""
    line = save(args, result, finished=result.get("finished", True))
    print(table(result["rows"], columns))
    if result.get("targets"):
        print(table(result["targets"], ("target", "least", "measured", "met")))
    print(line)


def said(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def table(rows: Rows, columns: Sequence[str]) -> str:
    """Rows as aligned text; what a row lacks is a dash."""
    text = [list(columns), *([_shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in text) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in text)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def device_name(device: torch.device) -> str:
    """The device with the versions that its figures depend on."""
    if device.type != "cuda":
        return machine()
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "missing"
    name = torch.cuda.get_device_name(device)
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, triton {triton}"


def load(folder: Path, device: torch.device) -> Bundle:
    """The bundle with copies of its networks on the device."""
    loaded = bundle.load(folder)
    classifier, networks = copy.deepcopy((loaded.classifier, loaded.networks))
    for network in (classifier, *networks.values()):
        network.to(device)
    return dataclasses.replace(loaded, classifier=classifier, networks=networks)


def interleave(
    works: Mapping[str, Work], device: torch.device, rounds: int, least: float
) -> dict[str, list[float]]:
    """Seconds of a call of each work, one sample a round, the works in turn.

    A sample is the mean of as many calls as take about `least` seconds.  Events on the device's own clock
    bracket it on CUDA.
    """
    calls = {}
    for name, work in works.items():
        sample(work, device, 2)
        calls[name] = max(1, int(least / sample(work, device, 2)))
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(sample(work, device, calls[name]))
    return times


def sample(work: Work, device: torch.device, calls: int) -> float:
    """Mean seconds of a call."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - started) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(calls):
        work()
    last.record()
    last.synchronize()
    return 1e-3 * float(first.elapsed_time(last)) / calls


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(times) < 2:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4)
    return low, middle, high
