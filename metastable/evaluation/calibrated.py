"""The command `calibrate`: set the anomaly thresholds of a bundle on training-split images."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metastable import anomaly, benign, bundle, console, datasets
from metastable.datasets.folder import AGREEMENT
from metastable.engine.local import engine_on
from metastable.errors import DataError
from metastable.evaluation import cli
from metastable.evaluation.portion import portion

MADE = ("pictures", "skipped", "shape", "test_share", "split_seed", "crops")
"""What is kept of how a folder of pictures became images (ImageSet.about)."""
SUMMARY = "set the anomaly thresholds of a bundle on training-split images"
BATCH = 50
MOST, MOST_SHIFTED = 5000, 1000


@dataclass(frozen=True)
class Changed:
    """Training images for a threshold, perhaps with benign changes (metastable.benign.mixed).

    Attributes:
        images: uint8 [N, C, H, W]; as floats all of them would take four times the memory.
        evidence: `data` and `changes` of metastable.anomaly.Threshold.
    """

    images: Tensor
    evidence: dict[str, Any]


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = SUMMARY
    cli.add_common(parser)
    parser.add_argument(
        "--n",
        type=int,
        help=f"training images for the score norm's threshold (default: {MOST}, or all there are)",
    )
    parser.add_argument("--false-positive-rate", type=float, default=0.05, help="share of them to be flagged")
    parser.add_argument(
        "--network", default="score", choices=("score", "energy"), help="whose score's norm is measured"
    )
    parser.add_argument(
        "--shift",
        default="",
        metavar="SETTINGS",
        help="set thresholds of the prediction shift too, of these settings, separated by commas; `default` "
        "is the bundle's default, `all` all of them",
    )
    parser.add_argument(
        "--shift-only", action="store_true", help="leave the score norm's threshold as the bundle has it"
    )
    parser.add_argument(
        "--shift-n",
        type=int,
        help=f"training images for a shift's threshold (default: {MOST_SHIFTED}, or all there are)",
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
    parser.add_argument("--seed", type=console.seed, default=0, help="of the changes and of the chains")
    console.idle(
        parser, "--n", "--network", beside="--shift-only", why="which leaves the score norm's threshold alone"
    )
    console.idle(parser, "--shift-only", "--shift-n", without="--shift", why="which names settings")
    console.idle(parser, "--clean-share", without="--augment", why="which changes the others")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Calibrate and put the result into the bundle."""
    rate = args.false_positive_rate
    for wanted, n in ((not args.shift_only, args.n), (args.shift, args.shift_n)):
        if wanted and n is not None:
            anomaly.check_rate(rate, n)  # at once: it is known before anything is read
    loaded = bundle.load(args.bundle)
    shifts = _chosen(args.shift, loaded)
    kept = loaded.anomaly if args.shift_only else None
    if args.shift_only and (kept is None or not shifts):
        raise DataError("--shift-only needs a bundle whose score norm is calibrated, and --shift SETTINGS")
    train = cli.images(args, "train", loaded, judges=False)
    if shifts and args.folder and not args.labels:
        print(f"a shift needs no labels: it is the lack of {AGREEMENT}", file=sys.stderr)
    augment = benign.named(args.augment) if args.augment else ()
    mixture = {"augment": augment, "clean_share": args.clean_share, "seed": args.seed}
    found = kept
    if found is None:
        seen = changed(_some(train, args.n, MOST, "--n"), **mixture)
        found = of(loaded, seen, false_positive_rate=rate, network=args.network)
    answered = dataclasses.replace(loaded, anomaly=found)
    thresholds = {}
    if shifts:
        some = changed(_some(train, args.shift_n, MOST_SHIFTED, "--shift-n"), **mixture)
        thresholds = {
            name: shift_of(answered, name, some, false_positive_rate=rate, seed=args.seed) for name in shifts
        }
    if kept is not None:  # then the thresholds of the other settings are what they were
        thresholds = {**loaded.shifts, **thresholds}
    bundle.set_anomaly(args.bundle, found, thresholds)
    said = {name: dataclasses.asdict(one) for name, one in thresholds.items()}
    return {"command": "calibrate", **dataclasses.asdict(found), "shifts": said}


def _some(train: datasets.Images, n: int | None, most: int, option: str) -> datasets.ImageSet:
    """As many as were asked for, or `most`, or all there are."""
    return train.take(most) if n is None else portion(train, n, option=option)


def _chosen(names: str, loaded: bundle.Bundle) -> Sequence[str]:
    """The settings whose shift is wanted; DataError for one that does not purify."""
    purifies = [name for name, one in loaded.settings.by_name.items() if one.dynamics.kind is not None]
    if names in ("", "all"):
        return purifies if names else ()
    wanted = (loaded.settings.default,) if names == "default" else cli.chosen_settings(names, loaded)
    if still := sorted(set(wanted) - set(purifies)):
        raise DataError(
            f"the settings {still} do not purify, so no prediction shifts: leave them out of --shift"
        )
    return wanted


def changed(
    train: datasets.ImageSet, *, augment: Sequence[str] = (), clean_share: float = 0.5, seed: int = 0
) -> Changed:
    """Images to calibrate on; DataError for a mixture that is none."""
    images, data = train.images, {"name": train.name, "split": train.split, "sha256": train.digest()}
    data |= {key: str(train.about[key]) for key in MADE if key in train.about}
    changes: dict[str, int] = {}
    if augment:
        images, changes = benign.mixed(images, tuple(augment), clean_share=clean_share, seed=seed)
        data["changes_seed"] = str(seed)
    return Changed(images, {"data": data, "changes": changes})


def of(
    loaded: bundle.Bundle, seen: Changed, *, false_positive_rate: float, network: str = "score"
) -> anomaly.Calibration:
    """The calibration of a network's score norm; ValueError for a rate that so few images cannot set."""
    score, parts = loaded.scores[network], torch.split(seen.images, 250)
    norms = torch.cat([anomaly.score_norms(datasets.to_float(part), score) for part in parts])
    return anomaly.calibrate(norms, false_positive_rate=false_positive_rate, network=network, **seen.evidence)


@torch.inference_mode()
def shift_of(
    loaded: bundle.Bundle, setting: str, seen: Changed, *, false_positive_rate: float, seed: int = 0
) -> anomaly.Threshold:
    """The threshold of a setting's prediction shift, of answers as they are served.

    Raises BundleError without a calibration of the score norm, which chooses the noise of some settings, and
    ValueError for a rate that so few images cannot set.
    """
    calibration = loaded.calibration
    only = dataclasses.replace(loaded.settings, by_name={setting: loaded.settings[setting]})
    engine = engine_on("cpu", dataclasses.replace(loaded, settings=only))
    shifts = []
    for start in tqdm(range(0, len(seen.images), BATCH), desc=f"{setting}, shift", mininterval=2):
        images = datasets.to_float(seen.images[start : start + BATCH])
        norms = anomaly.score_norms(images, loaded.scores[calibration.network])
        seeds = [(seed << 32) + start + row for row in range(len(images))]
        answers = engine.answer(images, seeds, loaded.settings[setting], calibration.flags(norms))
        purified = torch.cat([answer.result.probabilities for answer in answers])
        shifts.append(anomaly.prediction_shift(loaded.classifier(images).float().softmax(1), purified))
    return anomaly.threshold_of(torch.cat(shifts), false_positive_rate=false_positive_rate, **seen.evidence)
