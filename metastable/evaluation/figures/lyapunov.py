"""The maximal Lyapunov exponent of Langevin dynamics against the noise factor eta (Hill 2021, Figure 8).

By the method of Benettin et al. (1976): two copies of a chain, a small distance apart, take the same noise;
after every step the copy is put back to that distance along the line between them, and the exponent is the
mean logarithm of how much the distance had grown.

The score of a network with LeakyReLU is piecewise constant, so two copies that are very near take parallel
steps until a unit's kink lies between them: as the distance goes to zero, so does the exponent.  What is
measured here, as in the paper, is the exponent of the distance that is stated with it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from metastable import console, datasets
from metastable.console import beside
from metastable.dynamics import ScoreFunction
from metastable.dynamics.langevin import langevin_step
from metastable.errors import DataError
from metastable.evaluation import cli
from metastable.evaluation.outcomes import read_outcomes
from metastable.evaluation.portion import portion
from metastable.evaluation.same import same_run
from metastable.training.health import tile

Step = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(state, copy, t) -> both after step t, with the same noise."""


def maximal_exponent(
    step: Step, x: Tensor, *, steps: int, discard: int, distance: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Exponents per step of chains from x [N, ...], float64 [N], and their last states.

    Args:
        steps: that count, after `discard` others in which the copies turn to the direction that grows most.
        distance: Euclidean, between a chain and its copy.
    """
    rng = torch.Generator().manual_seed(seed)
    ahead = torch.randn(x.shape, generator=rng, dtype=x.dtype)
    copy = x + distance * ahead / _length(ahead)
    total = torch.zeros(len(x), dtype=torch.float64)
    for t in range(discard + steps):
        x, copy = step(x, copy, t)
        apart = copy - x
        length = _length(apart)
        if t >= discard:
            total += (length.flatten(1)[:, 0].double() / distance).log()
        copy = x + distance * apart / length
    return total / steps, x


def _length(v: Tensor) -> Tensor:
    """Euclidean norms as [N, 1, ...]; the least number in place of zero."""
    tiny = torch.finfo(v.dtype).tiny
    norms: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(tiny)
    return norms.view(-1, *[1] * (v.ndim - 1))


def langevin_pair(score: ScoreFunction, tau: float, eta: float, seed: int) -> Step:
    """Eq. 13 for a chain and its copy."""
    rng = torch.Generator().manual_seed(seed)

    def step(x: Tensor, copy: Tensor, t: int) -> tuple[Tensor, Tensor]:
        kick = torch.randn(x.shape, generator=rng).to(x)
        both, kicks = torch.cat([x, copy]), torch.cat([kick, kick])
        moved = langevin_step(both, score(both), tau, kicks, eta)
        return moved[: len(x)], moved[len(x) :]

    return step


@dataclass(frozen=True)
class _LyapunovConfig:
    """What a point depends on; kept beside them so that two runs cannot mix."""

    network: str
    n: int
    steps: int
    discard: int
    distance: float
    tau: float
    seed: int
    bundle: str
    data: str


def draw(rows: list[dict[str, Any]], states: list[Tensor], path: Path) -> None:
    """The exponent over eta with its standard error, and a few last states of every eta."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.errorbar(
        [row["eta"] for row in rows],
        [row["exponent"] for row in rows],
        yerr=[row["standard_error"] for row in rows],
        marker="o",
        capsize=3,
    )
    left.axhline(0, color="black", linewidth=0.6)
    left.set(xlabel="eta", ylabel="maximal Lyapunov exponent, per step")
    right.imshow(tile(torch.cat([s.transpose(0, 1).flatten(1, 2)[None] for s in states]), len(states)))
    right.set_title("last states: eta = " + ", ".join(f"{row['eta']:g}" for row in rows), fontsize=9)
    right.set_axis_off()
    figure.savefig(path, dpi=110)


def add(figures: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the figure's command."""
    parser = figures.add_parser(
        "lyapunov",
        parents=parents[:1],
        help="the maximal Lyapunov exponent against the noise factor eta (Hill 2021, Figure 8)",
        description=__doc__,
    )
    parser.add_argument("--network", default="energy", help="a network of the bundle")
    parser.add_argument(
        "--eta", type=cli.fractions, default="0,0.25,0.5,0.75,1,1.25,1.5,2", help="noise factors"
    )
    parser.add_argument("--tau", type=float, default=0.005, help="Langevin step, in [0, 1] units")
    parser.add_argument("--n", type=int, default=8, help="chains, each from a test image")
    parser.add_argument("--steps", type=int, default=1000, help="of a chain")
    parser.add_argument("--discard", type=int, default=200, help="first steps that are not counted")
    parser.add_argument("--distance", type=float, default=0.01, help="of a chain and its copy, Euclidean")
    parser.add_argument("--seed", type=console.seed, default=0, help="of the chains")
    cli.add_work(parser, "points")
    parser.set_defaults(run=run, settings_file=None)


def run(args: argparse.Namespace) -> cli.Summary:
    """Compute the points that are missing, and draw all of them."""
    loaded = cli.load_bundle(args)
    test = cli.test_images(args, loaded)
    if args.network not in loaded.scores:
        raise DataError(f"the bundle has no network {args.network!r}; it has {sorted(loaded.scores)}")
    own = {
        name: getattr(args, name) for name in ("network", "n", "steps", "discard", "distance", "tau", "seed")
    }
    config = _LyapunovConfig(**own, bundle=loaded.parts[args.network], data=test.digest())
    some = portion(test, args.n)
    args.work.mkdir(parents=True, exist_ok=True)
    same_run(args.work / "lyapunov-config.json", config)
    path = args.work / "points.jsonl"
    done = {row["eta"]: row for row in read_outcomes(path)}
    start = datasets.to_float(some.images)
    wanted = sorted(set(args.eta))
    states = []
    for eta in tqdm(wanted, desc="eta", mininterval=2):
        kept = args.work / f"states-{eta:g}.npy"
        if eta not in done:
            with torch.no_grad():
                exponents, last = maximal_exponent(
                    langevin_pair(loaded.scores[args.network], args.tau, eta, args.seed + 1),
                    start,
                    steps=args.steps,
                    discard=args.discard,
                    distance=args.distance,
                    seed=args.seed,
                )
            np.save(kept, last.numpy())
            error = float(exponents.std()) / math.sqrt(len(exponents)) if len(exponents) > 1 else math.nan
            done[eta] = {"eta": eta, "exponent": float(exponents.mean()), "standard_error": error}
            with path.open("a") as file:
                file.write(json.dumps(done[eta]) + "\n")
        states.append(torch.from_numpy(np.load(kept, allow_pickle=False))[:4])
    rows = [done[eta] for eta in wanted]
    if picture := beside(args.out, ".png"):
        draw(rows, states, picture)
    return {"command": "figure lyapunov", "rows": rows, **own, "machine": cli.machine()}
