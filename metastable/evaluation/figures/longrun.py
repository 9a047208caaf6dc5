"""Whether Langevin chains of an energy stay: energies, labels and pictures along long chains.

Chains start at test images.  A convergent energy (Hill 2021, section 3.1) neither sinks nor climbs along them
by more than energies of images differ anyway, and the classifier still knows what it sees at their ends.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from metastable import console, datasets
from metastable.console import beside
from metastable.dynamics.langevin import langevin_step
from metastable.errors import DataError
from metastable.evaluation import cli
from metastable.evaluation.figures.energies import energies, energy_network
from metastable.evaluation.portion import portion
from metastable.training.health import draw_samples

SHOWN = 32
BATCH = 50


@torch.no_grad()
def course(
    network: nn.Module,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    tau: float,
    denoise: float,
    marks: Sequence[int],
    seed: int = 0,
) -> tuple[list[dict[str, float]], Tensor]:
    """One chain from each of `images` [N, C, H, W] in [0, 1], after each number of steps in `marks`.

    Returns: `steps`, the mean energy's `drift` from that of images with noise `denoise`, the `spread` of the
    latter's energies (their standard deviation), `accuracy` of the classifier once the noise is taken off,
    the least and the greatest pixel; and those ends without noise, [N, C, H, W].
    """
    rng = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(images.shape, generator=rng)

    known = energies(network, images + denoise * normal())
    x, rows = images.clone(), list[dict[str, float]]()
    bar = tqdm(total=max(marks), desc="long chains", unit="step", mininterval=2)
    clean = x
    for before, mark in itertools.pairwise([0, *sorted(set(marks))]):
        for _ in range(before, mark):
            noise = normal()
            moved = zip(torch.split(x, BATCH), torch.split(noise, BATCH), strict=True)
            x = torch.cat([langevin_step(one, network.score(one), tau, z) for one, z in moved])  # type: ignore[operator]
            bar.update()
        clean = torch.cat([one + denoise**2 * network.score(one) for one in torch.split(x, BATCH)])  # type: ignore[operator]
        right = torch.cat([classifier(one).argmax(1) for one in torch.split(clean, BATCH)]) == labels
        low, high = x.aminmax()
        rows.append(
            {
                "steps": mark,
                "drift": round(float(energies(network, x).mean() - known.mean()), 1),
                "spread": round(float(known.std()), 1),
                "accuracy": round(float(right.float().mean()), 4),
                "pixel_min": round(float(low), 3),
                "pixel_max": round(float(high), 3),
            }
        )
    bar.close()
    return rows, clean


def draw(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Accuracy, and drift beside the spread, over steps."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["steps"] for row in rows]
    left.plot(steps, [100 * row["accuracy"] for row in rows], marker="o")
    left.set_ylabel("label kept by one chain, %")
    left.set_ylim(0, 100)
    right.plot(steps, [row["drift"] for row in rows], marker="o")
    right.axhspan(-rows[0]["spread"], rows[0]["spread"], alpha=0.2, label="spread of images' energies")
    right.set_ylabel("drift of the mean energy")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("Langevin steps")
    figure.savefig(path, dpi=110)


def add(figures: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the figure's command."""
    parser = figures.add_parser(
        "longrun",
        parents=parents[:1],
        help="whether Langevin chains of an energy stay (Hill 2021, section 3.1)",
        description=__doc__,
    )
    parser.add_argument("--network", default="energy", help="a network of the bundle that gives energies")
    parser.add_argument("--tau", type=float, default=0.01, help="of a step")
    parser.add_argument("--denoise", type=float, default=0.08, help="noise that images of the density have")
    parser.add_argument(
        "--marks", type=_marks, default="10,50,100,200,500,1000,1500", help="steps after which to look"
    )
    parser.add_argument("--n", type=int, default=100, help="test images")
    parser.add_argument("--seed", type=console.seed, default=0, help="of the chains")
    parser.set_defaults(run=run, settings_file=None)


def _marks(text: str) -> list[int]:
    found = [int(one) for one in text.split(",")]
    if min(found) < 1:
        raise ValueError(f"steps are counted from 1, not {min(found)}")
    return found


def run(args: argparse.Namespace) -> cli.Summary:
    """Run the chains, and draw their course and their ends."""
    loaded = cli.load_bundle(args)
    if not 0 < args.tau <= 1 or not 0 < args.denoise <= 1:
        raise DataError(f"tau {args.tau:g} and denoise {args.denoise:g} must lie in (0, 1]")
    test = portion(cli.test_images(args, loaded), args.n)
    images = datasets.to_float(test.images)
    rows, ends = course(
        energy_network(loaded.networks, args.network),
        loaded.classifier,
        images,
        test.labels,
        tau=args.tau,
        denoise=args.denoise,
        marks=args.marks,
        seed=args.seed,
    )
    if picture := beside(args.out, ".png"):
        draw(rows, picture)
        panels = {"images": images[:SHOWN], f"after {rows[-1]['steps']} steps": ends[:SHOWN]}
        draw_samples(picture.with_name(f"{picture.stem}-samples.png"), panels)
    done = {"tau": args.tau, "denoise": args.denoise, "n": len(images), "rows": rows}
    return {"command": "figure longrun", **done, "machine": cli.machine()}
