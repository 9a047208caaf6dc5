"""Item 2: microseconds of a Langevin step at every batch size, beside the published code and the machine.

    metastable bench gpu fast --out runs/gpu/fast.json

The sizes that the targets are about come first, and what was found is written after every contender.
A row is one contender at one number of chains: the median of samples taken in turn with eager autograd's,
its ratio to that of the same round, the rate of arithmetic (an explicit score's operations, counted) and its
share of a bf16 matrix product measured in the same run.  `floor_us` is what the larger of arithmetic at
that rate and of memory traffic at the measured bandwidth would take.  A contender that fails has its
error for a row; the others go on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.gpu import common
from benchmarks.gpu.contenders import EAGER, NETWORK, STEPS, Contenders
from benchmarks.targets import SpeedTarget, judge
from metastable import console
from metastable.bundle import Bundle
from metastable.training.run import device_of

SIZES = (100, 6000, 256, 384, 512, 1500, 150, 10, 1)
GRAPHS = (
    *("graphs f32", "graphs tf32", "graphs bf16", "graphs f16"),
    *("graphs tf32 fused", "graphs bf16 fused", "graphs f16 fused"),
    *("own kernels", "own kernels, 192 at a time"),
)
TARGETS = (
    SpeedTarget("100 chains, times eager autograd", GRAPHS, "ratio", (100,), 12.0),
    SpeedTarget(
        "100 chains, steps a second (60 microseconds a step)", GRAPHS, "steps_per_s", (100,), 1e6 / 60
    ),
    SpeedTarget("6000 chains, share of the bf16 matrix peak", GRAPHS, "peak_share", (6000,), 0.45),
)


def measure(
    bundle: Bundle,
    device: torch.device,
    sizes: tuple[int, ...],
    names: tuple[str, ...],
    *,
    tiny: bool,
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Rows of every size and contender, the machine's ceilings, and the targets judged.

    `keep` gets all that is known at first, and after every contender.
    """
    side, least, rounds = (64, 0.001, 2) if tiny else (8192, 0.03, 7)
    ceilings = machine_ceilings(device, side, rounds)
    flops, moved = operations(bundle), 8.0 * torch.Size(bundle.shape).numel()
    contenders = Contenders(bundle, device, sizes, backend="eager" if tiny else "inductor")
    rows: common.Rows = []

    def found() -> dict[str, Any]:
        return {
            "command": "gpu fast",
            "rows": rows,
            "ceilings": {k: float(f"{v:.4g}") for k, v in ceilings.items()},
            "gflop_a_chain_step": round(flops / 1e9, 4),
            "targets": judge([row for row in rows if "ratio" in row], TARGETS),
        }

    keep(found())
    for size in tqdm(sizes, desc="batch sizes"):
        floor = size * max(flops / ceilings["bf16_flops"], moved / ceilings["bytes"])
        works: dict[str, common.Work] = {}  # eager autograd's, once it is known
        for name in sorted(names, key=lambda name: name != EAGER):
            row: dict[str, Any] = {"work": "langevin", "chains": size, "runner": name}
            started = time.perf_counter()
            # A fault of a GPU may show only while a contender is timed, and then nothing runs any more.
            try:
                work = contenders.makers[name](size)
                work()
                ready = time.perf_counter() - started
                times = common.interleave({**works, name: work}, device, rounds, least)
                row |= _figures(times, name, size * flops, ceilings["bf16_flops"])
                row["floor_us"] = round(1e6 * floor, 2)
                if name == EAGER:
                    works[name] = work
                tqdm.write(f"{size} chains, {name}: ready in {ready:.1f} s", sys.stderr)
            except Exception as error:
                row["failed"] = common.said(error)
            rows.append(row)
            keep(found())
    return found()


def _figures(times: dict[str, list[float]], name: str, flops: float, peak: float) -> dict[str, Any]:
    """What one contender's seconds of STEPS steps come to; `flops` of a step, `peak` a second."""
    low, middle, high = common.quartiles([t / STEPS for t in times[name]])
    figures = {
        "us": round(1e6 * middle, 2),
        "us_quartiles": [round(1e6 * low, 2), round(1e6 * high, 2)],
        "steps_per_s": round(1 / middle, 1),
        "tflops": round(flops / middle / 1e12, 4),
        "peak_share": round(flops / middle / peak, 4),
    }
    if EAGER in times:
        ratios = [e / t for e, t in zip(times[EAGER], times[name], strict=True)]
        figures["ratio"] = round(common.quartiles(ratios)[1], 2)
    return figures


def operations(bundle: Bundle) -> float:
    """Floating-point operations of one chain's explicit score, counted on PyTorch's graph."""
    device = next(bundle.networks[NETWORK].parameters()).device
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        bundle.scores[NETWORK](torch.rand(1, *bundle.shape, device=device))
    return float(counter.get_total_flops())


def machine_ceilings(device: torch.device, side: int, rounds: int) -> dict[str, float]:
    """What this machine does at best: FLOP/s of square products, bytes/s of a copy, seconds of a kernel.

    Products and copies are of random data; `kernel_s` is one of a hundred small kernels in a graph.
    """
    works: dict[str, tuple[common.Work, float]] = {}
    for name, dtype in (("bf16_flops", torch.bfloat16), ("f32_flops", torch.float32)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        works[name] = (lambda a=a, b=b: a @ b), 2.0 * side**3  # type: ignore[misc]
    source = torch.rand(4 * side, side, device=device)
    target = torch.empty_like(source)
    works["bytes"] = (lambda: target.copy_(source)), 2.0 * source.numel() * 4
    times = common.interleave({k: w for k, (w, _) in works.items()}, device, rounds, 0.02)
    found = {k: amount / common.quartiles(times[k])[1] for k, (_, amount) in works.items()}
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        seconds = common.interleave({"tf32": works["f32_flops"][0]}, device, rounds, 0.02)["tf32"]
        torch.backends.cuda.matmul.allow_tf32 = False
        found["tf32_flops"] = 2.0 * side**3 / common.quartiles(seconds)[1]
        found["kernel_s"] = kernel_seconds(device)
    return found


def kernel_seconds(device: torch.device, count: int = 100) -> float:
    """Seconds of a kernel that does next to nothing, inside a CUDA graph."""
    from metastable.engine.runners.cuda_graphs import Recording

    x = torch.zeros(1024, device=device)

    def work() -> None:
        for _ in range(count):
            x.add_(1)

    recording = Recording(work, device, None)
    return common.quartiles(common.interleave({"x": recording.replay}, device, 5, 0.005)["x"])[1] / count


def draw(rows: common.Rows, path: Path) -> None:
    """Microseconds of a step, and the share of the peak, over the number of chains."""
    from matplotlib.figure import Figure  # takes seconds, and the figures come first

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    time_axes, share_axes = figure.subplots(1, 2)
    good = [row for row in rows if "us" in row]
    for name in dict.fromkeys(row["runner"] for row in good):
        mine = [row for row in good if row["runner"] == name]
        chains = [row["chains"] for row in mine]
        time_axes.plot(chains, [row["us"] for row in mine], marker="o", label=name)
        share_axes.plot(chains, [100 * row["peak_share"] for row in mine], marker="o", label=name)
    known = sorted({(row["chains"], row["floor_us"]) for row in good})
    time_axes.plot(*zip(*known, strict=True), "k--", label="floor")
    time_axes.set(xscale="log", yscale="log", xlabel="chains", ylabel="microseconds", title="a Langevin step")
    share_axes.set(xscale="log", xlabel="chains", ylabel="% of the bf16 matrix peak", ylim=(0, None))
    time_axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this script."""
    common.add_arguments(parser, __doc__)
    parser.add_argument("--sizes", help="numbers of chains, separated by commas")
    parser.add_argument("--only", help="names of contenders, separated by semicolons")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The whole script; its exit status."""
    device = device_of(args.device)
    sizes = tuple(int(s) for s in args.sizes.split(",")) if args.sizes else (1, 3) if args.tiny else SIZES
    loaded = common.load(args.bundle, device)
    names = tuple(args.only.split(";")) if args.only else tuple(Contenders(loaded, device, sizes).makers)
    result = measure(
        loaded, device, sizes, names, tiny=args.tiny, keep=lambda found: common.save(args, found)
    )
    columns = ("chains", "runner", "us", "ratio", "tflops", "peak_share", "floor_us", "failed")
    common.finish(args, result, columns)
    if path := common.out_path(args, result["command"]):
        draw(result["rows"], path.with_suffix(".png"))
    return 0


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.fast")


if __name__ == "__main__":
    main()
