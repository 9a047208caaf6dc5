"""Two commands about the noise of ADP.

certify   certified l_2 radii of a setting on test images (metastable.certify), resumable
sigma     the heuristic noise level of a data set, from its training images
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from metastable import console, datasets
from metastable.bundle import Bundle
from metastable.certify import Span, merged, smoothing_noise, spans, votes
from metastable.console import beside
from metastable.defense import score_of
from metastable.evaluation import cli
from metastable.evaluation.outcomes import read_outcomes
from metastable.evaluation.portion import portion
from metastable.evaluation.same import same_run
from metastable.evaluation.stats import wilson


def median_heuristic(images: Tensor) -> float:
    """Median l_2 distance of all pairs of images [N, C, H, W] in [0, 1], over sqrt(C H W).

    The sigma of ADP (section 3.2, after Garreau et al. 2018).  Raises ValueError for fewer than two images.
    """
    if len(images) < 2:
        raise ValueError("the median distance needs two images or more")
    distances = F.pdist(images.flatten(1).double())
    return float(distances.median()) / math.sqrt(images[0].numel())


@dataclass(frozen=True)
class _CertifiedConfig:
    """What the outcomes depend on; kept beside them so that two runs cannot mix."""

    settings: tuple[str, ...]
    choose: int
    chains: int
    alpha: float
    seed: int
    skip: int
    bundle: str
    data: str


@dataclass(frozen=True, eq=False)
class Counting:
    """Counts votes of images' chains: (setting, image, span) to int64 [classes].

    Args:
        test: spans name its images by their places.
        seed: that of the command; every image has its own chains.
    """

    bundle: Bundle
    test: datasets.ImageSet
    seed: int

    def __call__(self, item: tuple[str, int, Span]) -> Tensor:
        name, index, span = item
        setting = self.bundle.settings[name]
        return votes(
            datasets.to_float(self.test.images[index]),
            setting,
            classifier=self.bundle.classifier,
            score=score_of(self.bundle.scores, setting),
            seed=(self.seed << 64) + index,
            first=span.first,
            n=span.n,
        )


def certified_accuracy(outcomes: list[dict[str, Any]], radius: float) -> list[float]:
    """Share of images whose certificate names the true label and reaches the radius; Wilson's interval."""
    hits = sum(o["predicted"] == o["label"] and o["radius"] >= radius for o in outcomes)
    low, high = wilson(hits, len(outcomes))
    return [round(value, 4) for value in (hits / len(outcomes), low, high)]


def draw(outcomes: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG of the certified accuracy over the radius, a line a setting."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(o["setting"] for o in outcomes):
        these = [o for o in outcomes if o["setting"] == name]
        radii = sorted({0.0, *(o["radius"] for o in these)})
        axes.step(radii, [certified_accuracy(these, r)[0] for r in radii], where="post", label=name)
    axes.set_xlabel("l_2 radius, images in [0, 1]")
    axes.set_ylabel("certified accuracy")
    axes.set_ylim(0, 1)
    axes.legend()
    figure.savefig(path, dpi=110)


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add both commands; `parents` as of `cli.common` and `cli.chosen`."""
    first = commands.add_parser(
        "certify",
        parents=parents,
        help="certified l_2 radii of settings, by randomized smoothing",
        description=__doc__,
    )
    first.add_argument("--n", type=int, default=100, help="test images")
    cli.add_skip(first)
    first.add_argument("--choose", type=int, default=100, help="chains that choose the label")
    first.add_argument("--chains", type=int, default=1000, help="chains that bound its probability")
    first.add_argument("--alpha", type=float, default=0.001, help="chance that a certificate is wrong")
    first.add_argument("--radii", default="0,0.25,0.5,0.75,1,1.25,1.5", help="of the certified accuracies")
    first.add_argument("--seed", type=console.seed, default=0, help="of the chains")
    cli.add_work(first)
    cli.add_ray(first)
    first.set_defaults(run=run_certify)
    second = commands.add_parser(
        "sigma", parents=parents[:1], help="ADP's heuristic noise level, from training images"
    )
    second.add_argument("--n", type=int, default=5000, help="training images; all their pairs are measured")
    second.set_defaults(run=run_sigma)


def run_sigma(args: argparse.Namespace) -> cli.Summary:
    """The heuristic on the first n training images of the fixed order."""
    train = portion(cli.images(args, "train", judges=False), args.n)
    sigma = median_heuristic(datasets.to_float(train.images))
    return {"command": "sigma", "sigma": round(sigma, 5), "data": train.name, "n": len(train)}


def run_certify(args: argparse.Namespace) -> cli.Summary:
    """Certify every image that has no outcome yet, and sum up."""
    loaded = cli.load_bundle(args)
    test = portion(cli.test_images(args, loaded), args.n, skip=args.skip)
    names = cli.chosen_settings(args.settings, loaded)
    noise = {name: smoothing_noise(loaded.settings[name]) for name in names}
    args.work.mkdir(parents=True, exist_ok=True)
    path: Path = args.work / "outcomes.jsonl"
    digests = f"{loaded.digest} {loaded.settings.digest()}", test.digest()
    config = _CertifiedConfig(names, args.choose, args.chains, args.alpha, args.seed, args.skip, *digests)
    same_run(args.work / "certify-config.json", config)
    done = {(o["setting"], o["index"]) for o in read_outcomes(path)}
    left = [(name, i) for name in names for i in range(len(test)) if (name, i) not in done]
    counting = Counting(loaded, test, args.seed)
    todo = [(*one, span) for one in left for span in spans(args.choose, args.chains, loaded.shape)]
    counted: dict[tuple[str, int], dict[Span, Tensor]] = {one: {} for one in left}
    with (
        cli.pool(args) as pool,
        tqdm(total=len(left), desc="certificates", unit="image", mininterval=2) as bar,
    ):
        machine = cli.machine(pool=pool)
        for (name, index, span), votes_of in pool.map(counting, todo):
            counted[name, index][span] = votes_of
            if len(counted[name, index]) == len(todo) // len(left):
                found = merged(counted.pop((name, index)), sigma=noise[name], alpha=args.alpha)
                label, predicted = int(test.labels[index]), -1 if found.label is None else found.label
                line = {"setting": name, "index": index, "label": label, "predicted": predicted}
                with path.open("a") as file:
                    file.write(json.dumps({**line, "radius": found.radius, "lower": found.lower}) + "\n")
                bar.update()
    outcomes = read_outcomes(path)
    rows = []
    for name in names:
        these = [o for o in outcomes if o["setting"] == name]
        at = {f"{r:g}": certified_accuracy(these, r) for r in map(float, args.radii.split(","))}
        abstained = sum(o["predicted"] < 0 for o in these)
        rows.append({"setting": name, "sigma": noise[name], "certified": at, "abstained": abstained})
    if picture := beside(args.out, ".png"):
        draw(outcomes, picture)
    asked = {"n": len(test), "choose": args.choose, "chains": args.chains, "alpha": args.alpha}
    return {"command": "certify", "rows": rows, **asked, "machine": machine}
