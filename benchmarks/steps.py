"""Nanoseconds of a chain-step on every runner, beside the published code and the machine's own peak.

Everything is timed in one process, in turn, round by round, so that a busy moment of the machine meets
all alike; ratios are taken within a round.  Before a sample its case runs for a while untimed: the caches are
another's, and threads of another library still spin on the cores.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.targets import judge
from metastable.bundle import Bundle
from metastable.dynamics.adp import Ascent
from metastable.dynamics.drift import Drift
from metastable.engine.runners import Batch, Runner
from metastable.pixels import CPU_PIXELS, at_most

EAGER = "eager autograd"
EAGER_LAST = "eager autograd, channels last"
SIZES = (1, 10, 64, 150)
SIDE = 2048  # of the square matrices of the peak
IMAGES, WIDTH = 64, 128  # of the convolution of the peak: 3x3, 32x32, WIDTH to WIDTH channels
TAU = 0.005
SETTLE, SAMPLE = 0.05, 0.05  # seconds
Work = Callable[[], object]


def measure(
    bundle: Bundle, runners: Mapping[str, Runner], rounds: int, picture: Path | None
) -> dict[str, Any]:
    """Rows {work, chains, runner, ns of a chain, its quartiles, ratio to the reference, GFLOP/s, ...}.

    Works: `langevin` on the network `energy` (reference: eager autograd with the layout of the published
    code, which is PyTorch's default), `adp` on `score` and `classify` (reference: the first runner), as
    far as the bundle has these networks; batches of large images are smaller (`metastable.pixels`).
    `peak_share` is of the best convolution measured in the same rounds.
    """
    sizes = dict.fromkeys(at_most(size, bundle.shape, CPU_PIXELS) for size in SIZES)
    rows, peaks = [], []
    for work, flops in works(bundle).items():
        for size in sizes:
            cases = cases_of(work, bundle, runners, size)
            peak = {"sgemm": sgemm(), "conv torch": conv_torch(), "conv openvino": conv_openvino()}
            times = interleave(
                {**{f"peak {k}": w for k, w in peak.items()}, **cases}, rounds, f"{work} {size}"
            )
            conv = 2.0 * IMAGES * 32 * 32 * WIDTH * WIDTH * 9
            known = {"peak sgemm": 2.0 * SIDE**3, "peak conv torch": conv, "peak conv openvino": conv}
            rates = {k: n / statistics.median(times[k]) / 1e9 for k, n in known.items()}
            peaks.append({"work": work, "chains": size, **{k: round(v, 1) for k, v in rates.items()}})
            best = max(v for k, v in rates.items() if "conv" in k)
            rows += [
                row(work, size, name, times[name], times[next(iter(cases))], flops, best) for name in cases
            ]
    result = {"rows": rows, "peaks_gflops": peaks, "targets": judge(rows)}
    if picture:
        draw(rows, picture)
    return result


def works(bundle: Bundle) -> dict[str, float]:
    """Floating-point operations of a chain's piece of each work: a Langevin step, an adaptive update, logits.

    Counted on PyTorch's own graph, whatever a runner makes of it.
    """
    x = torch.rand(1, *bundle.shape)

    def count(call: Callable[[Tensor], Tensor]) -> float:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            call(x)
        return float(counter.get_total_flops())

    calls = {"langevin": ("energy", 1), "adp": ("score", 2)}
    steps = {
        work: times * count(bundle.scores[network])
        for work, (network, times) in calls.items()
        if network in bundle.networks
    }
    return {**steps, "classify": count(bundle.classifier)}


def cases_of(work: str, bundle: Bundle, runners: Mapping[str, Runner], size: int) -> dict[str, Work]:
    """What is timed, the reference first."""
    x = torch.rand(size, *bundle.shape, generator=torch.Generator().manual_seed(size))
    if work == "classify":
        return {name: lambda r=r: r.classify(x) for name, r in runners.items()}  # type: ignore[misc]
    keys = [(1 << 100, chain) for chain in range(size)]
    if work == "langevin":
        kind, parameters = Drift("energy"), (0.5 * TAU**2, TAU)
    else:
        kind, parameters = Ascent("score"), (1.0, 0.1, 2.0, 0.0)  # type: ignore[assignment]
    batch = Batch(x, keys, [0] * size, [parameters] * size)
    cases: dict[str, Work] = {
        name: lambda r=r: r.advance(kind, batch, 1)  # type: ignore[misc]
        for name, r in runners.items()
    }
    if work == "langevin":
        last = bundle.networks["energy"]
        plain = copy.deepcopy(last).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return {EAGER: lambda: published(plain, x), EAGER_LAST: lambda: published(last, x), **cases}
    return cases


def published(network: nn.Module, x: Tensor) -> Tensor:
    """A step as in the published code: one autograd.grad, X <- X - (tau^2 / 2) grad U + tau z."""
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    return x.detach() - 0.5 * TAU**2 * gradient + TAU * torch.randn_like(x)


def interleave(cases: Mapping[str, Work], rounds: int, label: str) -> dict[str, list[float]]:
    """Seconds of each case, one sample a round; every round starts with another one."""
    names = list(cases)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in tqdm(range(rounds), desc=label, mininterval=2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            repeat(cases[name], SETTLE)
            times[name].append(repeat(cases[name], SAMPLE))
    return times


def repeat(work: Work, least: float) -> float:
    """Mean seconds of a call, calling for at least this long."""
    started, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - started < least:
        work()
        calls += 1
    return (time.perf_counter() - started) / calls


def row(
    work: str, size: int, name: str, times: list[float], reference: list[float], flops: float, peak: float
) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(times, n=4)
    ratios = statistics.quantiles([r / t for r, t in zip(reference, times, strict=True)], n=4)
    return {
        "work": work,
        "chains": size,
        "runner": name,
        "ns": round(1e9 * middle / size),
        "ns_quartiles": [round(1e9 * low / size), round(1e9 * high / size)],
        "ratio": round(ratios[1], 2),
        "ratio_quartiles": [round(ratios[0], 2), round(ratios[2], 2)],
        "gflops": round(flops * size / middle / 1e9, 1),
        "peak_share": round(flops * size / middle / 1e9 / peak, 3),
    }


def sgemm() -> Work:
    a = torch.rand(SIDE, SIDE)
    return lambda: a @ a


def conv_torch() -> Work:
    weight = torch.rand(WIDTH, WIDTH, 3, 3).to(memory_format=torch.channels_last)
    x = torch.rand(IMAGES, WIDTH, 32, 32).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def work() -> Tensor:
        return F.conv2d(x, weight, padding=1)

    return work


def conv_openvino() -> Work:
    """The same convolution in float32 without the conversion from and to NCHW."""
    x = ov.opset13.parameter([IMAGES, WIDTH, 32, 32], ov.Type.f32)
    weight = torch.rand(WIDTH, WIDTH, 3, 3).numpy()
    y = ov.opset13.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1])
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(ov.Model([y], [x]), "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(torch.rand(IMAGES, WIDTH, 32, 32).numpy()))
    work: Work = request.infer
    return work


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Speed beside eager autograd, and milliseconds of a chain in what the settings run."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = dict(zip(("langevin", "share", "adp", "classify"), figure.subplots(2, 2).flat, strict=True))
    for key, panel in panels.items():
        work = "langevin" if key == "share" else key
        for name in dict.fromkeys(r["runner"] for r in rows if r["work"] == work):
            mine = [r for r in rows if r["work"] == work and r["runner"] == name]
            x = [r["chains"] for r in mine]
            if key == "langevin":
                middle = [r["ratio"] for r in mine]
                spread = [
                    [m - r["ratio_quartiles"][0] for m, r in zip(middle, mine, strict=True)],
                    [r["ratio_quartiles"][1] - m for m, r in zip(middle, mine, strict=True)],
                ]
                panel.errorbar(x, middle, spread, marker="o", capsize=3, label=name)
            elif key == "share":
                panel.plot(x, [100 * r["peak_share"] for r in mine], marker="o", label=name)
            else:
                panel.plot(x, [r["ns"] / 1e6 for r in mine], marker="o", label=name)
        panel.set(xscale="log", xlabel="chains in the batch", ylim=(0, None))
        sizes = sorted({r["chains"] for r in rows})
        panel.set_xticks(sizes, [str(size) for size in sizes])
        if panel.get_lines():
            panel.legend(fontsize=7)
    panels["langevin"].set(ylabel="times faster", title="Langevin step, beside eager autograd")
    panels["share"].set(ylabel="%", title="Langevin step, share of the float32 convolution peak")
    panels["adp"].set(ylabel="ms a chain", title="adaptive ADP update (score network)")
    panels["classify"].set(ylabel="ms a chain", title="classifier")
    figure.savefig(path, dpi=110)
