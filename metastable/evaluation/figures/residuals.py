"""Residual correlation: how much of an attack survives the purification (Mitchell 2020, Figure 3.8).

The Pearson correlation over pixels of x_adv - x and x_pur - x, along the iterations of BPDA+EOT and for
several step sizes.  1: the purification leaves the attack as it is; 0: what is left is something else.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from metastable import console, datasets
from metastable.attacks.ascent import Misclassify, autograd_slope
from metastable.attacks.ball import Ball
from metastable.attacks.target import Eot, WhiteBox
from metastable.attacks.white_box import attackable, white_box
from metastable.console import beside
from metastable.evaluation import cli
from metastable.evaluation.portion import portion
from metastable.networks.onnx_gradient import IMAGES


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of every image of a with that of b, [B, C, H, W] each: [B]; 0 where one is constant."""
    a, b = (v.flatten(1).double() - v.flatten(1).double().mean(1, keepdim=True) for v in (a, b))
    lengths = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(lengths > 0, (a * b).sum(1) / lengths.clamp_min(1e-300), 0.0)


def correlations(
    box: WhiteBox,
    images: Tensor,
    labels: Tensor,
    *,
    ball: Ball,
    step: float,
    steps: int,
    samples: int,
    seed: int,
) -> Tensor:
    """[steps, B]: between the attack and what one chain leaves, at X_1 ... X_steps of BPDA+EOT."""
    target = Eot(box, samples=samples, gradient="bpda", seed=seed)
    judge = Eot(box, samples=1, gradient="bpda", seed=seed, stream=1)
    goal, x, found = Misclassify(), images.clone(), []
    for _ in range(steps):
        _, gradient = autograd_slope(target, x, labels, goal)
        x = ball.project(x + step * ball.direction(gradient), images)
        found.append(pearson(x - images, judge.purified(x) - images))
    return torch.stack(found)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The mean over images along the iterations, a line a setting and step."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        label = f"{row['setting']}, step {255 * row['step']:g}/255"
        axes.plot(range(1, len(row["mean"]) + 1), row["mean"], marker="o", ms=3, label=label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="attack iteration", ylabel="correlation of attack and what is left")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def add(figures: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the figure's command."""
    parser = figures.add_parser(
        "residuals",
        parents=parents,
        help="how much of an attack survives the purification (Mitchell 2020, Figure 3.8)",
        description=__doc__,
    )
    parser.add_argument("--n", type=int, default=20, help="test images")
    parser.add_argument("--eps", type=cli.fraction, default="8/255", help="radius of the attack's ball")
    parser.add_argument(
        "--step-sizes", type=cli.fractions, default="0.5/255,1/255,2/255", help="lengths of a step"
    )
    parser.add_argument("--steps", type=int, default=20, help="of the attack")
    parser.add_argument("--samples", type=int, default=15, help="EOT samples")
    parser.add_argument("--batch", type=int, default=4, help="images attacked together")
    parser.add_argument("--seed", type=console.seed, default=0, help="of the attack")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Attack the images with every step size, and follow the correlation."""
    loaded = cli.load_bundle(args)
    test = portion(cli.test_images(args, loaded), args.n)
    images, ball = datasets.to_float(test.images), Ball("linf", args.eps)
    attacked, sizes = attackable(loaded, images[:IMAGES]), args.step_sizes
    jobs = [(name, size) for name in cli.chosen_settings(args.settings, loaded) for size in sizes]
    rows = []
    for name, size in tqdm(jobs, desc="settings and steps", mininterval=2):
        shared: dict[str, Any] = {"ball": ball, "step": size, "steps": args.steps, "samples": args.samples}
        batches = zip(torch.split(images, args.batch), torch.split(test.labels, args.batch), strict=True)
        found = [
            correlations(white_box(attacked, name), x, y, seed=args.seed + place, **shared)
            for place, (x, y) in enumerate(batches)
        ]
        mean = [round(float(value), 4) for value in torch.cat(found, dim=1).mean(1)]
        rows.append({"setting": name, "step": size, "n": len(test), "mean": mean})
    if picture := beside(args.out, ".png"):
        draw(rows, picture)
    return {"command": "figure residuals", "eps": args.eps, "rows": rows, "machine": cli.machine()}
