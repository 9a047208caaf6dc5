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

from export import bring, hardened, mar, tune
from export.adapt import Wishes
from metastable import bundle
from metastable.bundle import shipped
from metastable.datasets import Folder, options
from metastable.datasets.folder import Split, labeller_of
from metastable.errors import BundleError, DataError
from metastable.evaluation import budget, cli
from metastable.images import INTERPOLATIONS, MODES, Fit
from metastable.training import harden
from metastable.training.harden_config import HardenConfig

CONFIG = Path("model-config.yaml")
HARDENED_BATCH = 8


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
    add("--keep", type=_share, default=0.9, help="share of clean labels that settings must keep")
    add("--eps", type=cli.ratio, default="4/255", help="radius of the attack that compares settings")
    add("--n", type=cli.from_one, default=40, help="pictures to compare settings on")
    add("--judge-n", type=cli.from_one, default=100, help="pictures to judge on")
    add(
        "--harden",
        type=_positive,
        metavar="MINUTES",
        help="train the purifier for it so long",
    )
    add("--seed", type=cli.count, default=0, help="of attacks and chains")
    add("--serve", action="store_true", help="serve the bundle when it is there")
    add("--out", type=Path, required=True, help="folder to write")
    parser.set_defaults(run=run, tells=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Bring, tune, judge; serve if that was asked for."""
    pictures = _pictures(args) if options.given(args) else None
    if pictures is None and (args.harden or args.serve or args.judge_images):
        raise DataError(
            "--harden, --serve and --judge-images need pictures of the kind that will be sent: give --images"
        )
    newcomer = _newcomer(args)
    name = args.name or args.out.resolve().name
    found = bring.bring(newcomer, args.base, args.out, name=name, pictures=pictures)
    _tell(args.model.name, found)
    result = {"command": "bring", "out": str(args.out), **found}
    if pictures is None:
        print("no thresholds yet, so it cannot be served: `metastable calibrate`, or bring it with --images")
        return result
    loaded = bundle.load(args.out)
    train, test = _splits(args, pictures, loaded)
    wanted = tune.Wanted(
        budget_ms=args.budget_ms,
        keep=args.keep,
        radius=args.eps,
        choose_n=args.n,
        judge_n=args.judge_n,
        seed=args.seed,
    )
    runner = tune.runner_of(loaded)
    tuned = tune.tune(args.out, train, wanted, runner)
    if args.harden:
        tuned["hardened"] = _harden(args, budget.Candidate(**tuned["chosen"]), train, name)
        runner = tune.runner_of(bundle.load(args.out))
    judged = tune.judge(args.out, test, wanted, runner)
    _sum_up(args.out, tuned, judged)
    result |= {"tuned": tuned, "judged": judged}
    if args.serve:
        print(json.dumps(result), flush=True)
        _serve(args.out, name)
    return result


def _newcomer(args: argparse.Namespace) -> bring.Newcomer:
    fit = None
    if args.fit:
        try:
            fit = Fit(args.fit, args.fit_share, args.interpolation)
        except ValueError as error:
            raise BundleError(f"--fit-share: {error}") from None
    wishes = Wishes(
        output=args.output, layout=args.layout, order=args.order, range=args.range, size=args.size
    )
    return bring.Newcomer(
        file=args.model,
        network=args.network,
        classes=args.classes,
        mean=args.mean,
        std=args.std,
        fit=fit,
        wishes=wishes,
    )


def _pictures(args: argparse.Namespace) -> Folder:
    """The folder of --images; its shape, fit and names are put in when the classifier has been read."""
    if not args.folder.is_dir():
        raise DataError(f"--images {args.folder} is no folder: give one of pictures")
    return options.folder(args, (3, 1, 1))


def _splits(args: argparse.Namespace, pictures: Folder, loaded: bundle.Bundle) -> tuple[Split, Split]:
    """Pictures to calibrate and choose on, and others to judge on.

    Raises DataError where there are too few to calibrate on.
    """
    bare = labeller_of(loaded.classifier)
    mine = dataclasses.replace(
        pictures, shape=loaded.shape, fit=loaded.fit, names=tuple(loaded.classes), labeller=bare
    )
    if args.judge_images:
        mine = dataclasses.replace(mine, test_share=0)
        other = dataclasses.replace(mine, path=args.judge_images, labels=args.judge_labels, test_share=1)
        test = other.split("test")
    else:
        test = mine.split("test")
    train = mine.split("train")
    if len(train) < (least := tune.least()):
        raise DataError(
            f"{args.folder} has {len(train)} pictures to calibrate on, and a threshold that flags "
            f"{tune.RATE:.0%} needs {least}: give more, lower --test-share, or cut each into --crops"
        )
    return train, test


def _tell(file: str, found: dict[str, Any]) -> None:
    channels, height, width = found["shape"]
    print(f"{file}: {found['classes']} classes, images of {channels} x {height} x {width}")
    for change in found["changes"]:
        print(f"  {change}")
    print(f"  gradients: {found['gradients']}")
    looked = found["pictures"]
    if looked and "accuracy" in looked:
        print(
            f"  {looked['accuracy']:.1%} of {looked['n']} labelled pictures are answered rightly, unpurified"
        )
    if looked and looked.get("warning"):
        print(f"  warning: {looked['warning']}", file=sys.stderr)


def _harden(args: argparse.Namespace, chosen: budget.Candidate, train: Split, name: str) -> dict[str, Any]:
    """Train the purifier before the classifier, towards its own answers, and put it into the bundle."""
    before = args.out.with_name(args.out.name + "-before")
    run_folder = args.out.with_name(args.out.name + "-hardening")
    if not before.exists():
        args.out.rename(before)
    held = max(1, len(train) // 5)
    config = HardenConfig(
        mode="purifier",
        bundle=str(before),
        sigma=chosen.sigma,
        eps=float(args.eps) / 2,
        fit_minutes=args.harden,
        batch=min(HARDENED_BATCH, len(train) - held),
        held_out=held,
        check_images=min(held, 20),
        check_steps=3,
        check_eot=1,
        smoothing=0.0,
        consistency=1.0,
        denoise=0.1,
        lr=2e-4,
        ema=0.99,
        pad=0,
        check_every=50,
    )
    metrics = harden.train(config, train.folder, run_folder)
    settings = run_folder / "settings.yaml"
    settings.write_text(budget.settings_of(chosen, hardened.PURIFIER))
    hardened.build(run_folder, before, settings, name, args.out)
    tune.calibrate_shifts(args.out, train)
    return metrics


def _sum_up(out: Path, tuned: dict[str, Any], judged: dict[str, Any]) -> None:
    chosen = tuned["chosen"]
    print(
        f"balanced: {chosen['chains']} chains of {chosen['steps']} steps at sigma {chosen['sigma']:g}, "
        f"{chosen['ms']:.0f} ms an answer ({tuned['runner']}, budget {tuned['budget_ms']:g})"
    )
    if not tuned["in_budget"]:
        print("  nothing answers within the budget here: this is the cheapest", file=sys.stderr)
    if not tuned["keeps"]:
        print("  nothing within the budget keeps so many clean labels: this keeps most", file=sys.stderr)
    for row in judged["rows"]:
        shares = ", ".join(f"{100 * share[0]:.0f} % {view}" for view, share in row["kept"].items())
        print(f"  {row['setting']:<10} {row['ms']:7.1f} ms   kept: {shares}")
    print(f"report: {out / tune.REPORT / 'report.md'}")


def _serve(out: Path, name: str) -> None:
    """Become the server of the bundle."""
    archive = out / "metastable.mar"
    mar.build(out, CONFIG, archive)
    os.execv(sys.executable, [sys.executable, "-m", "metastable", "serve", "--archive", str(archive)])


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
