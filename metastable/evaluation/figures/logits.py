"""Realisations of F_H for a borderline image and a clear one (Hill 2021, Figure 3).

Of the images that a few chains answer rightly, the one whose label leads by least is the borderline one, and
the one in the middle of that order the clear one.  Each gets many chains; their means over disjoint
groups of H are independent realisations of F_H.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metastable import console, datasets
from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.console import beside
from metastable.defense import Defended, defend
from metastable.errors import DataError
from metastable.evaluation import cli
from metastable.evaluation.portion import portion
from metastable.settings import Setting

IMAGES_PER_SEED = 1 << 16


def realisations(outputs: Tensor, h: int) -> Tensor:
    """Means over disjoint groups of h chains: [M, classes] -> [M // h, classes].

    Raises DataError if there are fewer than h chains.
    """
    groups = len(outputs) // h
    if groups < 1:
        raise DataError(f"{len(outputs)} chains give no realisation of F_{h}: ask for more chains")
    return outputs[: groups * h].view(groups, h, -1).mean(1)


def borderline_and_clear(mean: Tensor, labels: Tensor) -> tuple[int, int]:
    """Of rows whose argmax is the label: the one with the least margin, and the one with the median.

    Raises DataError if fewer than two rows [N, classes] are right.
    """
    top = mean.topk(2, dim=1)
    right = (top.indices[:, 0] == labels).nonzero().squeeze(1)
    if len(right) < 2:
        raise DataError(f"only {len(right)} images are answered rightly: ask for more")
    margins = (top.values[:, 0] - top.values[:, 1])[right]
    order = right[margins.argsort()]
    return int(order[0]), int(order[len(order) // 2])


def answers(bundle: Bundle, images: Tensor, setting: Setting, seed: int) -> Defended:
    """What the setting's chains say of images [N, C, H, W], each with a seed of its own."""
    calibration = bundle.calibration
    flagged = calibration.flags(score_norms(images, bundle.scores[calibration.network]))
    seeds = [seed * IMAGES_PER_SEED + i for i in range(len(images))]
    return defend(images, seeds, setting, classifier=bundle.classifier, scores=bundle.scores, flagged=flagged)


def panel(outputs: Tensor, label: int, classes: list[str], sizes: list[int]) -> dict[str, Any]:
    """Of one image: the mean over its chains, and for every H the realisations of F_H and how many are wrong.

    Outputs [M, classes] are reported of the true class, `label`, and of the class that comes second or,
    where the mean is wrong, first.
    """
    mean = outputs.mean(0)
    rival = int(mean.scatter(0, torch.tensor([label]), -torch.inf).argmax())
    pair = {"true": label, "runner_up": rival}
    by_h = []
    for h in sizes:
        made = realisations(outputs, h)
        wrong = float((made.argmax(1) != label).float().mean())
        values = {key: made[:, number].tolist() for key, number in pair.items()}
        by_h.append({"H": h, "realisations": len(made), "wrong": wrong, **values})
    return {
        "classes": {key: classes[number] for key, number in pair.items()},
        "mean": {key: float(mean[number]) for key, number in pair.items()},
        "by_h": by_h,
    }


def draw(panels: list[dict[str, Any]], path: Path) -> None:
    """Histograms of the true class's and the runner-up's output, a row an image and a column an H."""
    columns = len(panels[0]["by_h"])
    figure = Figure(figsize=(3.2 * columns, 2.4 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), columns, squeeze=False)
    for row, panel in zip(grid, panels, strict=True):
        for axes, one in zip(row, panel["by_h"], strict=True):
            for key, color in (("true", "#4477aa"), ("runner_up", "#ee6677")):
                axes.hist(one[key], bins=25, alpha=0.6, color=color, label=panel["classes"][key])
                axes.axvline(panel["mean"][key], color=color, linestyle="--")
            axes.set_title(f"{panel['kind']}, H = {one['H']}: {100 * one['wrong']:.1f} % wrong", fontsize=9)
        row[0].legend(fontsize=8)
    figure.supxlabel("output of F_H")
    figure.savefig(path, dpi=110)


def add(figures: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the figure's command."""
    parser = figures.add_parser(
        "logits",
        parents=parents,
        help="realisations of F_H for a borderline image and a clear one (Hill 2021, Figure 3)",
        description=__doc__,
    )
    parser.add_argument("--n", type=int, default=200, help="images to choose from")
    parser.add_argument("--screen", type=int, default=16, help="chains of each of them")
    parser.add_argument("--chains", type=int, default=3000, help="chains of each of the two chosen")
    parser.add_argument("--h", type=cli.whole_numbers, default="1,10,150", help="values of H")
    parser.add_argument("--seed", type=console.seed, default=0, help="of the chains")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Choose the two images, draw their chains, and say how often F_H is wrong."""
    loaded = cli.load_bundle(args)
    test = portion(cli.test_images(args, loaded), args.n)
    name = cli.chosen_settings(args.settings or loaded.settings.default, loaded)[0]
    setting = loaded.settings[name]
    images = datasets.to_float(test.images)
    screened = answers(loaded, images, _with_chains(setting, args.screen), args.seed).mean
    panels = []
    for kind, index in zip(("borderline", "clear"), borderline_and_clear(screened, test.labels), strict=True):
        found = answers(loaded, images[[index]], _with_chains(setting, args.chains), args.seed + 1 + index)
        made = panel(found.outputs[0], int(test.labels[index]), loaded.classes, args.h)
        panels.append({"kind": kind, "index": index, **made})
    if picture := beside(args.out, ".png"):
        draw(panels, picture)
    kept = ("H", "realisations", "wrong")
    said = [{**one, "by_h": [{key: h[key] for key in kept} for h in one["by_h"]]} for one in panels]
    return {"command": "figure logits", "setting": name, "images": said, "machine": cli.machine()}


def _with_chains(setting: Setting, chains: int) -> Setting:
    return dataclasses.replace(setting, chains=chains, delta=None)
