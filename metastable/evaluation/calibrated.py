"""The command `calibrate`: set the anomaly threshold of a bundle on training-split images."""

from __future__ import annotations

import argparse
import dataclasses

import torch

from metastable import anomaly, benign, bundle, datasets
from metastable.evaluation import cli

MADE = ("pictures", "skipped", "shape", "test_share", "split_seed", "crops")
"""What is kept of how a folder of pictures became images (ImageSet.about)."""
SUMMARY = "set the anomaly threshold of a bundle on training-split images"


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = SUMMARY
    cli.add_common(parser)
    parser.add_argument("--n", type=int, default=5000, help="training images")
    parser.add_argument("--false-positive-rate", type=float, default=0.05, help="share of them to be flagged")
    parser.add_argument(
        "--network", default="score", choices=("score", "energy"), help="whose score's norm is measured"
    )
    every = ",".join(benign.DEFAULT)
    parser.add_argument(
        "--augment",
        nargs="?",
        const=every,
        metavar="CHANGES",
        help=f"images have benign changes: {every}, or those named here, separated by commas",
    )
    parser.add_argument("--clean-share", type=float, default=0.5, help="images that --augment leaves alone")
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Calibrate and put the result into the bundle."""
    loaded = bundle.load(args.bundle)
    train = cli.images(args, "train", loaded).take(args.n)
    found = of(
        loaded,
        train,
        false_positive_rate=args.false_positive_rate,
        network=args.network,
        augment=benign.named(args.augment) if args.augment else (),
        clean_share=args.clean_share,
        seed=args.seed,
    )
    bundle.set_anomaly(args.bundle, found)
    return {"command": "calibrate", **dataclasses.asdict(found)}


def of(
    loaded: bundle.Bundle,
    train: datasets.ImageSet,
    *,
    false_positive_rate: float,
    network: str = "score",
    augment: tuple[str, ...] = (),
    clean_share: float = 0.5,
    seed: int = 0,
) -> anomaly.Calibration:
    """The calibration of a network's score on images, changed as `augment` says (metastable.benign.mixed).

    Raises DataError for a mixture that is none, and ValueError for a rate that so few images cannot set.
    """
    images, data = train.images, {"name": train.name, "split": train.split, "sha256": train.digest()}
    data |= {key: str(train.about[key]) for key in MADE if key in train.about}
    changes: dict[str, int] = {}
    if augment:
        images, changes = benign.mixed(images, augment, clean_share=clean_share, seed=seed)
        data["changes_seed"] = str(seed)
    parts = torch.split(images, 250)  # as floats all of them would take four times the memory
    return anomaly.calibrate(
        torch.cat([anomaly.score_norms(datasets.to_float(x), loaded.scores[network]) for x in parts]),
        false_positive_rate=false_positive_rate,
        network=network,
        data=data,
        changes=changes,
    )
