"""The options of commands that take a folder of pictures in place of a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metastable import console
from metastable.datasets.base import Shape
from metastable.datasets.folder import AGREEMENT, CLASSIFIER, Folder, Labeller
from metastable.images import STRETCH, Fit

ALL = ("--labels", "--test-share", "--split-seed", "--crops")
"""Options that are of --images."""


def add(parser: argparse.ArgumentParser, *instead: str) -> None:
    """Add --images, --labels and how pictures are shared out and cut.

    `instead`: options of a data set, which are refused beside --images.
    """
    parser.add_argument(
        "--images",
        dest="folder",
        type=Path,
        metavar="DIR",
        help="folder of pictures in place of a data set; sub-folders are walked",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="CSV", help="of --images: lines of a file name and a class"
    )
    parser.add_argument(
        "--test-share",
        type=float,
        default=Folder.test_share,
        help="share of --images that is held out as test images; the rest is for training and calibrating",
    )
    parser.add_argument(
        "--split-seed", type=console.seed, default=0, help="of what is held out of --images, and of --crops"
    )
    parser.add_argument(
        "--crops",
        type=int,
        default=0,
        help="random windows of each of --images, each one image; 0 takes it whole, as the server does",
    )
    console.idle(parser, *ALL, without="--images", why="the folder of the pictures")
    console.idle(parser, *instead, beside="--images", why="which names a folder in place of a data set")


def given(args: argparse.Namespace) -> bool:
    """Whether the arguments name a folder of pictures."""
    return args.folder is not None


def folder(
    args: argparse.Namespace,
    shape: Shape,
    fit: Fit = STRETCH,
    names: tuple[str, ...] = (),
    labeller: Labeller | None = None,
    mirrored: bool = True,
) -> Folder:
    """The folder that the arguments name.

    What is said of its images goes into the line that the command prints (`adds` in metastable.console).
    """
    said = set[str]()

    def seen(about: Mapping[str, Any]) -> None:
        args.adds = {"pictures": dict(about)}
        if about["labels"] == CLASSIFIER:
            args.adds["accuracy_is"] = AGREEMENT
            _say(said, f"{about['folder']} has no labels: what is called accuracy is {AGREEMENT}")
        if count := about["skipped"]:
            named = "; ".join(f"{name} ({why})" for name, why in about["skipped_files"].items())
            more = ", among them" if count > len(about["skipped_files"]) else ""
            _say(said, f"{about['folder']}: skipped {count} pictures that cannot be read{more}: {named}")

    return Folder(
        path=args.folder,
        shape=shape,
        fit=fit,
        labels=args.labels,
        names=names,
        test_share=args.test_share,
        seed=args.split_seed,
        crops=args.crops,
        mirrored=mirrored,
        labeller=labeller,
        seen=seen,
    )


def _say(said: set[str], text: str) -> None:
    if text not in said:
        said.add(text)
        print(text, file=sys.stderr, flush=True)
