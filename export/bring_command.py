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
import math
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from export.adapt import Wishes
from export.newcomer import Newcomer
from export.plan import Plan, carry_out
from export.tune import Wanted
from metastable import console
from metastable.bundle import shipped
from metastable.datasets import options
from metastable.errors import BundleError, DataError
from metastable.evaluation import cli
from metastable.images import INTERPOLATIONS, MODES, Fit

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
    add(
        "--mean",
        type=_numbers,
        help="by channel, of values in --range; 0,0,0 where the graph normalizes",
    )
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
    add(
        "--budget-ms",
        type=_positive,
        default=300.0,
        help="milliseconds of an answer here, without decoding",
    )
    add("--keep", type=_share, default=0.75, help="share of right clean labels that settings must keep")
    add("--eps", type=_radius, default="4/255", help="radius of the attack that compares settings")
    add("--n", type=cli.from_one, default=40, help="pictures to compare settings on")
    add("--judge-n", type=cli.from_one, default=100, help="pictures to judge on")
    add(
        "--harden",
        type=_positive,
        metavar="MINUTES",
        help="train the purifier for it so long",
    )
    add("--seed", type=console.seed, default=0, help="of attacks and chains")
    add("--serve", action="store_true", help="serve the bundle when it is there, in this process")
    add("--port", type=int, help="of --serve (default: 8080)")
    add("--metrics-port", type=int, help="of --serve (default: 8083)")
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
    console.idle(parser, "--port", "--metrics-port", without="--serve", why="whose ports they are")
    parser.set_defaults(run=run, tells=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Bring, tune, judge; serve if that was asked for."""
    plan = _plan(args)
    result = {"command": "bring", "out": str(args.out), **carry_out(plan)}
    if args.serve:
        print(json.dumps(result), flush=True)
        serve = ["serve", "--engine", "local", "--bundle", str(args.out.resolve())]
        for name in ("port", "metrics_port"):
            if (value := getattr(args, name)) is not None:
                serve += [f"--{name.replace('_', '-')}", str(value)]
        os.execv(sys.executable, [sys.executable, "-m", "metastable", *serve])
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
    sides = (height, width or height)
    if not all(one.isdecimal() and int(one) for one in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no height and width, such as 224 or 48x64")
    return int(sides[0]), int(sides[1])


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, such as 0.5,0.5,0.5")
    return found


def _range(text: str) -> tuple[float, float]:
    found = _numbers(text)
    if len(found) != 2 or found[0] >= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is no range, such as 0,255")
    return found[0], found[1]


def _positive(text: str) -> float:
    [found, *more] = _numbers(text)
    if more or found <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return found


def _share(text: str) -> float:
    [found, *more] = _numbers(text)
    if more or not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 1")
    return found


def _radius(text: str) -> Fraction:
    try:
        found = cli.ratio(text)
    except (ValueError, ZeroDivisionError):
        found = Fraction(0)
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no radius of images in [0, 1], such as 4/255")
    return found
