"""The command `calibrate`: set the anomaly threshold of a bundle on training-split images."""

from __future__ import annotations

import argparse
import dataclasses
import math

from metastable import anomaly, benign, bundle, datasets
from metastable.evaluation import cli
from metastable.evaluation.portion import portion

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
    rate = args.false_positive_rate
    if not 0 < rate < 1 or math.ceil((args.n + 1) * (1 - rate)) > args.n:  # before anything is computed
        raise ValueError(
            f"--false-positive-rate {rate:g} cannot be set on --n {args.n} images: give a share in (0, 1), "
            "and more images for a smaller one"
        )
    loaded = bundle.load(args.bundle)
    train = portion(datasets.load(args.dataset, datasets.data_root(args.data), "train"), args.n)
    found = of(
        loaded,
        train,
        false_positive_rate=rate,
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
    changes: dict[str, int] = {}
    if augment:
        images, changes = benign.mixed(images, augment, clean_share=clean_share, seed=seed)
        data["changes_seed"] = str(seed)
    return anomaly.calibrate(
        anomaly.score_norms(datasets.to_float(images), loaded.scores[network]),
        false_positive_rate=false_positive_rate,
        network=network,
        data=data,
        changes=changes,
    )
