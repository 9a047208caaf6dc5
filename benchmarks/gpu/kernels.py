"""Which kernels a Langevin step consists of, and what each takes: by the profiler, at every size.

    metastable bench gpu kernels --sizes 100,6000 --out runs/gpu/kernels.json

A row is one kernel of one contender at one number of chains: launches and microseconds of a step.  Times
are of kernels alone, without the gaps between them; the row `all` has their sum.  On the CPU they are of
PyTorch's operations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import common
from benchmarks.gpu.contenders import STEPS, Contenders
from metastable import console
from metastable.bundle import Bundle
from metastable.training.run import device_of

NAMES = ("graphs f16", "own kernels")
SIZES = (100, 6000)
CALLS = 4  # of STEPS steps each
MOST = 25  # kernels of a contender and size


def measure(
    bundle: Bundle,
    device: torch.device,
    sizes: tuple[int, ...],
    names: tuple[str, ...],
    keep: Callable[[common.Rows], object],
) -> common.Rows:
    """Rows of every size and contender; one that fails has its error.  `keep` gets all rows after each."""
    contenders = Contenders(bundle, device, sizes)
    rows: common.Rows = []
    for name in names:  # what may fail for good comes last, at all sizes
        for size in sizes:
            here = {"chains": size, "runner": name}
            try:
                work = contenders.makers[name](size)
                work()
                rows += [here | row for row in profiled(work, device)]
            except Exception as error:
                rows.append(here | {"failed": common.said(error)})
            keep(rows)
    return rows


def profiled(work: Callable[[], object], device: torch.device) -> common.Rows:
    """The dearest kernels of a step and their sum, the dearest first."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(CALLS):
            work()
        if on_gpu:
            torch.cuda.synchronize(device)
    times: dict[str, tuple[float, float]] = {}
    for event in found.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent > 0:
            times[event.key] = spent / CALLS / STEPS, event.count / CALLS / STEPS
    total = sum(spent for spent, _ in times.values())
    launches = sum(count for _, count in times.values())
    rows: list[dict[str, Any]] = [{"kernel": "all", "us": round(total, 2), "launches": round(launches, 2)}]
    for key in sorted(times, key=lambda key: -times[key][0])[:MOST]:
        spent, count = times[key]
        share = round(spent / total, 3)
        rows.append({"kernel": key[:120], "us": round(spent, 2), "launches": round(count, 2), "share": share})
    return rows


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this script."""
    common.add_arguments(parser, __doc__)
    parser.add_argument("--sizes", help="numbers of chains, separated by commas")
    parser.add_argument("--only", help="names of contenders, separated by semicolons")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The whole script; its exit status."""
    device = device_of(args.device)
    sizes = tuple(int(s) for s in args.sizes.split(",")) if args.sizes else (1, 2) if args.tiny else SIZES
    names = tuple(args.only.split(";")) if args.only else NAMES
    head = {"command": "gpu kernels"}
    rows = measure(
        common.load(args.bundle, device),
        device,
        sizes,
        names,
        keep=lambda rows: common.save(args, {**head, "rows": rows}),
    )
    common.finish(
        args, {**head, "rows": rows}, ("chains", "runner", "us", "launches", "share", "kernel", "failed")
    )
    return 0


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.kernels")


if __name__ == "__main__":
    main()
