"""Item 1: is what runs on the GPU right?

    metastable bench gpu correct --out runs/gpu/correct.json

Kernels against the NumPy reference, scores and dynamics against float64, noise against the normal
distribution, chains against themselves in other batches and inside an engine, and memory over a thousand
admissions.
A part that breaks off is a check that fails, and the others go on; what was found is written after every
part.  After an access that a GPU forbids all later work of the process fails: the kernels that have run
least come last.  Ends with status 1 if a check fails.  On the CPU the kernels run in Triton's interpreter,
where that is installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from benchmarks.gpu import common
from metastable import console, cuda_noise
from metastable.bundle import Bundle
from metastable.dynamics import ScoreFunction
from metastable.dynamics.adp import Ascent, adp
from metastable.dynamics.drift import Drift
from metastable.dynamics.langevin import langevin
from metastable.engine.local import LocalEngine
from metastable.engine.runners import Batch
from metastable.engine.runners.cuda_energy import FusedScore
from metastable.engine.runners.cuda_runner import CudaRunner
from metastable.networks.energy import EnergyNetwork
from metastable.noise import ChainKey
from metastable.settings import Setting, Settings
from metastable.training.run import device_of

TAU = 0.005
BOUNDS = {"f32": 1e-5, "tf32": 2e-2, "bf16": 2e-1, "f16": 3e-2}
"""Median relative error of a chain's score.  Signs of activations near zero flip below float32, and they
are what the gradient depends on: the bounds catch errors, the figures are for the record."""
Check = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is checked."""

    chains: int
    steps: int
    admissions: int
    samples: int  # chains and steps of the noise statistics


FULL, TINY = Size(100, 20, 1000, 64), Size(3, 3, 30, 6)


def check(name: str, value: float | Tensor, bound: float) -> Check:
    """A row; NaN never passes."""
    value, bound = float(value), float(bound)  # Python's own, for JSON
    return {"check": name, "value": value, "bound": bound, "ok": value <= bound}


def kernel(bundle: Bundle, device: torch.device, size: Size) -> list[Check]:
    """Words bit for bit, normals and update to rounding, at a size that is no multiple of a block."""
    if device.type != "cuda":
        if importlib.util.find_spec("triton") is None:
            return [{"check": "kernel: skipped, the package triton is not installed", "ok": True}]
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    from metastable import cuda_kernels

    keys = seeds(size.chains)
    rows = cuda_noise.pack(keys, [3 * i for i in range(len(keys))])
    there = rows.to(device)
    out = torch.full((len(keys), 4 * 131), -1, dtype=torch.int64, device=device)
    cuda_kernels.words(there, out)
    different = int((out.cpu().numpy().view(np.uint64) != cuda_noise.words(rows, 4 * 131)).sum())
    found = [check("words of the kernel that differ from NumPy's Philox", different, 0)]
    for dtype in (torch.float32, torch.bfloat16):
        x = last(torch.rand(len(keys), 3, 19, 23))
        score, factors = last(torch.randn(x.shape)).to(dtype), torch.rand(2, len(keys))
        wanted, got = x.clone(), x.to(device)
        cuda_noise.update(wanted, score, factors, rows, 2)
        cuda_kernels.update(got, score.to(device), factors.to(device), there, 2)
        error = (got.cpu() - wanted).abs().flatten()
        found.append(check(f"update, {dtype}: median error", error.median(), 1e-6))
        found.append(check(f"update, {dtype}: largest error", error.max(), 1e-3))
    return found


def noise(bundle: Bundle, device: torch.device, size: Size) -> list[Check]:
    """Moments, tails and independence of what the runner adds to its states.

    The bounds are five standard errors, or a p-value of 1e-4.
    """
    keys = [(1 << 100, chain) for chain in range(size.samples)]
    rows = cuda_noise.pack(keys, [0] * len(keys)).to(device)
    factors = torch.stack([torch.zeros(len(keys)), torch.ones(len(keys))]).to(device)
    drawn = []
    for t in range(size.samples):
        x = last(torch.zeros(len(keys), 3, 32, 32, device=device))
        cuda_noise.update(x, x, factors, rows, t)
        drawn.append(x.cpu())
    z = torch.stack(drawn)  # [steps, chains, C, H, W]
    flat, n = z.flatten().double(), z.numel()
    found = [
        check("noise: |mean|", flat.mean().abs(), 5 / n**0.5),
        check("noise: |variance - 1|", (flat.var() - 1).abs(), 5 * (2 / n) ** 0.5),
    ]
    for beyond in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(beyond)
        spread = 5 * (expected * (1 - expected) / n) ** 0.5 + 1 / n
        share = (flat.abs() > beyond).double().mean() - expected
        found.append(check(f"noise: share beyond {beyond:g}, off by", share.abs(), spread))
    some = flat[torch.randperm(n, generator=torch.Generator().manual_seed(0))[:200_000]].numpy()
    found.append(check("noise: 1 - p of Kolmogorov-Smirnov", 1 - stats.kstest(some, "norm").pvalue, 1 - 1e-4))
    for name, rows_of in (("chains", z[0].flatten(1)), ("steps", z[:, 0].flatten(1))):
        correlation = np.corrcoef(rows_of.numpy()) - np.eye(len(rows_of))
        bound = 6 / rows_of.shape[1] ** 0.5
        found.append(check(f"noise: correlation between {name}", np.abs(correlation).max(), bound))
    return found


def scores(bundle: Bundle, device: torch.device, size: Size) -> list[Check]:
    """The explicit gradient of the energy in each precision, against autograd in float64."""
    x = images(size.chains)
    network = copy.deepcopy(bundle.networks["energy"]).cpu().double()
    exact = x.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(exact).sum(), exact)
    found = []
    for precision, bound in BOUNDS.items():
        runner = CudaRunner(bundle.networks, bundle.classifier, device=str(device), precision=precision)  # type: ignore[arg-type]
        error = off(runner.score("energy", x), -gradient).median()
        found.append(check(f"score of the energy, {precision}: median relative error", error, bound))
    return found


def convolutions(bundle: Bundle, device: torch.device, size: Size) -> list[Check]:
    """Our own kernels of the energy's score against float64, in batches of several pieces and of one."""
    network, shape, piece = bundle.networks["energy"], bundle.shape, size.chains // 2 + 1
    if device.type != "cuda":
        if importlib.util.find_spec("triton") is None:
            return [{"check": "convolutions: skipped, the package triton is not installed", "ok": True}]
        os.environ["TRITON_INTERPRET"] = "1"
        torch.manual_seed(0)
        network, shape = EnergyNetwork(3, 16, 16), (3, 16, 16)  # the interpreter is slow
    assert isinstance(network, EnergyNetwork)
    made = FusedScore(network, device, piece)
    found = []
    for chains in dict.fromkeys((size.chains, 1)):
        x = last(torch.rand(chains, *shape, generator=torch.Generator().manual_seed(chains)))
        exact = copy.deepcopy(network).cpu().double()
        with torch.no_grad():
            error = off(made(x.to(device)).cpu(), exact.score(x.double())).median()
        found.append(check(f"own kernels, {chains} chains: median relative error", error, 5e-2))
    return found


def runner(bundle: Bundle, device: torch.device, size: Size) -> list[Check]:
    """Langevin and ADP against float64, and a chain alone against the same chain in a batch."""
    made = CudaRunner(bundle.networks, bundle.classifier, device=str(device), precision="f32")
    x, keys = images(size.chains), seeds(size.chains)
    double = {name: copy.deepcopy(n).cpu().double() for name, n in bundle.networks.items()}
    exact: dict[str, ScoreFunction] = {name: n.score for name, n in double.items()}  # type: ignore[misc]
    found = []
    got = walk(made, x, keys, size.steps)

    def normals(t: int) -> Tensor:
        return cuda_noise.normal(cuda_noise.pack(keys, [t] * len(keys)), (3, 32, 32)).double()

    with torch.no_grad():
        wanted = langevin(x.double(), exact["energy"], tau=TAU, steps=size.steps, noise=normals)
    found.append(check("Langevin steps: median relative error", off(got, wanted).median(), 1e-4))
    parameters = (0.5, 0.05, 1.0, 0.0)
    batch = Batch(x, keys, [0] * len(x), [parameters] * len(x))
    moved, _ = made.advance(Ascent("score"), batch, 2)
    with torch.no_grad():
        step = adp(x.double(), exact["score"], steps=2, lambda_=0.5, bounds=(0.05, 1.0), stop=0.0)
    found.append(check("ADP updates: median relative error", off(moved, step.x).median(), 1e-3))
    alone = torch.cat([walk(made, x[i : i + 1], keys[i : i + 1], size.steps) for i in range(3)])
    found.append(check("a chain alone and in a batch: median difference", off(alone, got[:3]).median(), 1e-4))
    turned = walk(made, x.flip(0), keys[::-1], size.steps).flip(0)
    found.append(check("a chain at another place: median difference", off(turned, got).median(), 1e-4))
    return found


def engine(bundle: Bundle, device: torch.device, size: Size) -> list[Check]:
    """Answers of an engine, whose states stay on the device, against the same chains advanced at once."""
    setting = Setting.of("some", "langevin", network="energy", chains=size.chains, steps=size.steps, tau=TAU)
    made = CudaRunner(bundle.networks, bundle.classifier, device=str(device), precision="f32")
    settings = Settings({setting.name: setting}, setting.name, setting.chains, setting.steps)
    local = LocalEngine(made, settings, bundle.shape, sizes=(1, 16))
    seeds, x = [1 << 90, 7], images(2)
    found = []
    for i, answer in enumerate(local.answer(x, seeds, setting, torch.zeros(2, dtype=torch.bool))):
        keys = [(seeds[i], chain) for chain in range(size.chains)]
        wanted = walk(made, x[i].expand(size.chains, *bundle.shape), keys, size.steps).mean(0)
        error = off(answer.result.purified, wanted[None]).median()
        found.append(check(f"purified mean of image {i}: relative error", error, 1e-4))
    return found


def leak(bundle: Bundle, device: torch.device, size: Size) -> list[Check]:
    """Graphs and memory after many admissions of sizes that were seen before."""
    made = CudaRunner(bundle.networks, bundle.classifier, device=str(device), precision="bf16")
    widths = sorted({1, 2, size.chains // 2 + 1, size.chains})
    for width in widths:
        admit(made, width, 0)
    before = made.recordings, _memory(device)
    for number in range(size.admissions):
        admit(made, widths[number % len(widths)], number)
    after = made.recordings, _memory(device)
    return [
        check(f"graphs recorded in {size.admissions} admissions", after[0] - before[0], 0),
        check(f"bytes of the device kept by {size.admissions} admissions", after[1] - before[1], 0),
    ]


def admit(made: CudaRunner, width: int, number: int) -> None:
    walk(made, images(width), [(number, chain) for chain in range(width)], 1)


def walk(made: CudaRunner, x: Tensor, keys: list[ChainKey], steps: int) -> Tensor:
    batch = Batch(x, keys, [0] * len(x), [(0.5 * TAU**2, TAU)] * len(x))
    return made.advance(Drift("energy"), batch, steps)[0]


def _memory(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def images(size: int) -> Tensor:
    return torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(size))


def seeds(size: int) -> list[ChainKey]:
    return [((i + 1) * (2**127 // (size + 1)), i % 7) for i in range(size)]


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def off(got: Tensor, wanted: Tensor) -> Tensor:
    """Relative L2 error of every row."""
    got, wanted = got.double().flatten(1), wanted.double().flatten(1)
    error: Tensor = torch.linalg.vector_norm(got - wanted, dim=1) / torch.linalg.vector_norm(wanted, dim=1)
    return error


PARTS: dict[str, Callable[[Bundle, torch.device, Size], list[Check]]] = {
    "scores": scores,
    "kernel": kernel,
    "noise": noise,
    "runner": runner,
    "engine": engine,
    "leak": leak,
    "convolutions": convolutions,
}


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this script."""
    common.add_arguments(parser, __doc__)
    parser.add_argument("--only", choices=tuple(PARTS), help="one part")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The whole script; its exit status."""
    device = device_of(args.device)
    loaded = common.load(args.bundle, device)
    rows: list[Check] = []
    result = {"command": "gpu correct", "rows": rows}
    common.save(args, result)
    for name, part in PARTS.items():
        if args.only in (None, name):
            try:
                rows += part(loaded, device, TINY if args.tiny else FULL)
            except Exception as error:
                rows.append({"check": f"{name}: {common.said(error)}", "ok": False})
            common.save(args, result)
    common.finish(args, result, ("check", "value", "bound", "ok"))
    return 0 if all(row["ok"] for row in rows) else 1


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.correct")


if __name__ == "__main__":
    main()
