"""Any classifier in one command: read, put behind a purifier, calibrated, judged, served.

    metastable bring model.onnx --images photos --out mine/defended
    metastable bring model.onnx --images photos --labels labels.csv --harden 30 --serve --out mine/defended

Without --images a bundle is written that has no thresholds and the settings of its base; `metastable
calibrate` makes it fit to serve.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from export import mar
from export.adapt import Wishes
from export.bring import Newcomer
from export.plan import Plan, carry_out
from export.tune import Wanted
from metastable import console
from metastable.bundle import shipped
from metastable.datasets import options
from metastable.errors import BundleError, DataError
from metastable.evaluation import cli
from metastable.images import INTERPOLATIONS, MODES, Fit

CONFIG = Path("model-config.yaml")
ANY = (3, 1, 1)
"""A shape of images until the classifier's own is known."""


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    add = parser.add_argument
    add("model", type=Path, help="ONNX graph, or safetensors weights of --network")
    options.add(parser)
    add(
        "--judge-images",
        type=Path,
        metavar="DIR",
        help="judge by these, not by a share of --images",
    )
    add("--judge-labels", type=Path, metavar="CSV", help="of --judge-images")
    add("--classes", type=Path, help="class names in the order of the logits: one a line, or JSON")
    add("--size", type=_size, metavar="H[xW]", help="height and width, where the graph leaves them open")
    add("--mean", type=_numbers, help="by channel, of images in [0, 1]; 0,0,0 where the graph normalises")
    add("--std", type=_numbers, help="by channel, as --mean")
    add(
        "--range",
        type=_range,
        metavar="LOW,HIGH",
        help="what the graph takes: 0,1 or 0,255",
    )
    add("--order", choices=("rgb", "bgr"), help="of the colours that the graph takes")
    add("--layout", choices=("nchw", "nhwc"), help="of the images that the graph takes")
    add("--output", metavar="NAME", help="the value of the graph that holds the logits")
    add("--fit", choices=MODES, help="how pictures become images: stretched, or resized and cropped")
    add("--fit-share", type=float, default=1.0, help="of --fit: share of the resized sides that is kept")
    add("--interpolation", choices=tuple(INTERPOLATIONS), default="bicubic", help="of --fit")
    add("--network", default="whitened", help="of safetensors weights: whitened, or wrn-28-10")
    add(
        "--base", type=shipped.path, default="natural", help="a bundle that purifies, or a shipped one's name"
    )
    add("--name", help="of the new bundle (default: that of its folder)")
    add("--budget-ms", type=_positive, default=300.0, help="milliseconds of an answer on this machine")
    add("--keep", type=_share, default=0.75, help="share of clean labels that settings must keep")
    add("--eps", type=cli.ratio, default="4/255", help="radius of the attack that compares settings")
    add("--n", type=cli.from_one, default=40, help="pictures to compare settings on")
    add("--judge-n", type=cli.from_one, default=100, help="pictures to judge on")
    add(
        "--harden",
        type=_positive,
        metavar="MINUTES",
        help="train the purifier for it so long",
    )
    add("--seed", type=console.seed, default=0, help="of attacks and chains")
    add("--serve", action="store_true", help="serve the bundle when it is there")
    add("--out", type=Path, required=True, help="folder to write")
    console.idle(parser, "--fit-share", "--interpolation", without="--fit", why="which resizes")
    console.idle(parser, "--judge-labels", without="--judge-images", why="whose labels they are")
    console.idle(
        parser,
        *(
            "--judge-images",
            "--budget-ms",
            "--keep",
            "--eps",
            "--n",
            "--judge-n",
            "--harden",
            "--seed",
            "--serve",
        ),
        without="--images",
        why="on which that is measured",
    )
    parser.set_defaults(run=run, tells=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Bring, tune, judge; serve if that was asked for."""
    plan = _plan(args)
    result = {"command": "bring", "out": str(args.out), **carry_out(plan)}
    if args.serve:
        print(json.dumps(result), flush=True)
        archive = args.out / "metastable.mar"
        mar.build(args.out, CONFIG, archive)
        os.execv(sys.executable, [sys.executable, "-m", "metastable", "serve", "--archive", str(archive)])
    return result


def _plan(args: argparse.Namespace) -> Plan:
    """Raises BundleError or DataError for what the arguments cannot mean."""
    pictures = judged = None
    if options.given(args):
        pictures = options.folder(args, ANY)
        if args.judge_images:
            judged = dataclasses.replace(pictures, path=args.judge_images, labels=args.judge_labels)
    for folder in (pictures, judged):
        if folder is not None and not folder.path.is_dir():
            raise DataError(f"{folder.path} is no folder: give one of pictures")
    wanted = Wanted(
        budget_ms=args.budget_ms,
        keep=args.keep,
        radius=args.eps,
        choose_n=args.n,
        judge_n=args.judge_n,
        seed=args.seed,
    )
    name = args.name or args.out.resolve().name
    return Plan(_newcomer(args), args.base, args.out, name, pictures, judged, wanted, args.harden or 0.0)


def _newcomer(args: argparse.Namespace) -> Newcomer:
    fit = None
    if args.fit:
        try:
            fit = Fit(args.fit, args.fit_share, args.interpolation)
        except ValueError as error:
            raise BundleError(f"--fit-share: {error}") from None
    wishes = Wishes(
        output=args.output, layout=args.layout, order=args.order, range=args.range, size=args.size
    )
    return Newcomer(args.model, args.network, args.classes, args.mean, args.std, fit, wishes)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    found = int(height), int(width or height)
    if min(found) < 1:
        raise ValueError(f"{text!r} is no height and width")
    return found


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(value) for value in text.split(","))


def _range(text: str) -> tuple[float, float]:
    low, high = _numbers(text)
    return low, high


def _positive(text: str) -> float:
    found = float(text)
    if not 0 < found < float("inf"):
        raise ValueError(f"{text!r} is not above 0")
    return found


def _share(text: str) -> float:
    found = float(text)
    if not 0 <= found <= 1:
        raise ValueError(f"{text!r} is not a share in [0, 1]")
    return found
