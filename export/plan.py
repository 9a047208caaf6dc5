"""What `bring` does, one step after the other, whoever asks for it: the command or Python."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export import bring, hardened, tune
from export.claim import Claim
from export.newcomer import Newcomer
from export.tune import Wanted
from metastable import bundle, reading
from metastable.datasets import Folder
from metastable.datasets.folder import LIMITS, Split, labeller_of
from metastable.errors import DataError, NoGradient
from metastable.evaluation import budget
from metastable.training import harden
from metastable.training.harden_config import HardenConfig

HARDENED_BATCH = 8
CHECKED = 20
"""Held-out pictures, at most, of a check while a purifier is hardened."""


@dataclass(frozen=True)
class Plan:
    """What is to be brought, and what of it.

    Attributes:
        newcomer: the classifier.
        base: folder of the bundle whose purifier is taken.
        out, name: of the new bundle.
        pictures: to calibrate and choose on, and the held-out share of them to judge on; without any the
            bundle gets no thresholds.
        judged: others to judge on.
        wanted: what settings are to do.
        minutes: to harden the purifier for; 0 does not.
    """

    newcomer: Newcomer
    base: Path
    out: Path
    name: str
    pictures: Folder | None = None
    judged: Folder | None = None
    wanted: Wanted = field(default_factory=Wanted)
    minutes: float = 0.0


def carry_out(plan: Plan) -> dict[str, Any]:
    """Bring, calibrate, choose, harden, judge, and say what was found; returns it.

    Raises BundleError for a classifier that is refused, DataError for pictures that cannot be used or are too
    few, and for folders to write that hold something else.
    """
    claim = Claim(plan.out, _said(plan))
    claim.check()
    if plan.pictures is not None:
        _check_pictures(plan, plan.pictures)
    found = bring.bring(
        plan.newcomer, plan.base, plan.out, name=plan.name, pictures=plan.pictures, before=claim.take
    )
    _tell(plan.newcomer.file.name, found)
    if plan.pictures is None:
        print("no thresholds yet, so it cannot be served: `metastable calibrate`, or bring it with --images")
        return found
    if plan.minutes and found["gradients"].startswith("none"):
        raise NoGradient(f"--harden needs gradients: {found['gradients']}")
    train, test = _splits(plan, plan.pictures)
    runner = tune.runner_of(bundle.load(plan.out))
    tuned = tune.tune(plan.out, train, plan.wanted, runner)
    notes = [*found["changes"], *([found["looked"]["warning"]] if found["looked"].get("warning") else [])]
    if plan.minutes:
        tuned["hardened"] = _harden(plan, claim, budget.Candidate(**tuned["chosen"]), train)
        runner = tune.runner_of(bundle.load(plan.out))
        notes += _hardened(plan, tuned["hardened"])
    judged = tune.judge(plan.out, test, plan.wanted, runner, [*notes, *_chosen(tuned)])
    _sum_up(plan, tuned, judged)
    return found | {"tuned": tuned, "judged": judged}


def _said(plan: Plan) -> dict[str, Any]:
    """What makes a plan another one, but for the bytes of the classifier: ready for JSON."""
    pictures = [
        None
        if one is None
        else [str(one.path.resolve()), str(one.labels), one.test_share, one.seed, one.crops]
        for one in (plan.pictures, plan.judged)
    ]
    return {
        "command": plan.newcomer.command(),
        "base": str(plan.base.resolve()),
        "name": plan.name,
        "pictures": pictures,
        "wanted": str(plan.wanted),
        "minutes": plan.minutes,
    }


def _check_pictures(plan: Plan, pictures: Folder) -> None:
    """DataError for too few pictures, or labels of some and not of others."""
    if plan.judged is not None and (pictures.labels is None) != (plan.judged.labels is None):
        raise DataError("give labels of both, --images and --judge-images, or of none")
    share = pictures.test_share if plan.judged is None else 0.0
    train = dataclasses.replace(pictures, test_share=share).split("train")
    if len(train) < (least := tune.least()):
        raise DataError(
            f"{pictures.path} has {len(train)} pictures to calibrate on, and a threshold that flags "
            f"{tune.RATE:.0%} needs {least}: give more, lower --test-share, or cut each into --crops"
        )
    judged = pictures if plan.judged is None else dataclasses.replace(plan.judged, test_share=1.0)
    judged.split("test")


def _splits(plan: Plan, pictures: Folder) -> tuple[Split, Split]:
    """Pictures to calibrate and choose on, and others, whole ones, to judge on.

    DataError where none is left to judge on: what is byte for byte among the first is left out.
    """
    loaded = bundle.load(plan.out)

    def fitted(folder: Folder, **changes: Any) -> Folder:
        return dataclasses.replace(
            folder,
            shape=loaded.shape,
            fit=loaded.fit,
            names=tuple(loaded.classes),
            labeller=labeller_of(loaded.classifier),
            **changes,
        )

    if plan.judged is None:
        train, test = fitted(pictures).split("train"), fitted(pictures, crops=0).split("test")
    else:
        train = fitted(pictures, test_share=0).split("train")
        test = fitted(plan.judged, test_share=1, crops=0).split("test")
    known = {_digest(train, one.name) for one in train.files}
    others = [one for one in test.files if _digest(test, one.name) not in known]
    if copies := len(test.files) - len(others):
        print(f"{copies} pictures to judge on are among those to choose on: left out", file=sys.stderr)
    if not others:
        raise DataError("no picture is left to judge on: give others with --judge-images")
    return train, dataclasses.replace(test, files=others)


def _digest(split: Split, name: str) -> str:
    try:
        return hashlib.sha256(reading.read(split.folder.path / name, LIMITS.max_bytes)).hexdigest()
    except OSError:
        return name  # skipped, and named, when it is to be decoded


def _chosen(tuned: dict[str, Any]) -> list[str]:
    chosen = tuned["chosen"]
    said = [
        f"balanced: {chosen['chains']} chains of {chosen['steps']} steps at sigma {chosen['sigma']:g}, "
        f"chosen on {tuned['chosen_on']} pictures within {tuned['budget_ms']:g} ms"
    ]
    if not tuned["in_budget"]:
        said.append("nothing answers within the budget here: this is the cheapest")
    if not tuned["keeps"]:
        said.append("nothing within the budget keeps the wanted share of clean labels")
    if tuned["not_attacked"]:
        said.append(f"nothing was attacked, so the most noise was taken: {tuned['not_attacked']}")
    return said


def _hardened(plan: Plan, metrics: dict[str, Any]) -> list[str]:
    """What the training came to, by its own checks: whoever waited for it should see what it brought."""
    before, after, n = metrics["robust_before"], metrics["robust_kept"], metrics["checked"]
    said = [
        f"the purifier was hardened: {metrics['updates']} updates of {plan.minutes:g} minutes; "
        f"a short attack on the whole defense left {before:.0%} of {n} held-out pictures before and "
        f"{after:.0%} after"
    ]
    mean = (before + after) / 2
    if after - before <= 2 * math.sqrt(2 * mean * (1 - mean) / n):  # two standard errors
        said.append(
            "that is no gain that shows: more minutes, more pictures, or the bundle without --harden are "
            "better"
        )
    return said


def _harden(plan: Plan, claim: Claim, chosen: budget.Candidate, train: Split) -> dict[str, Any]:
    """Train the purifier against attacks on the whole defense, and put it into the bundle.

    The labels are the pictures', or the classifier's own.  Until that is done the bundle stays as it is; then
    that lies beside it.  A run that is cut off goes on when the same plan is carried out again.
    """
    out, loaded = plan.out.resolve(), bundle.load(plan.out)
    run = claim.beside(f"hardening-{chosen.sigma:g}")
    held = max(1, len(train) // 5)
    config = HardenConfig(
        mode="purifier",
        bundle=str(plan.out),
        start=tune.purifier_of(loaded),
        sigma=chosen.sigma,
        eps=float(plan.wanted.radius) / 2,
        fit_minutes=plan.minutes,
        batch=min(HARDENED_BATCH, len(train) - held),
        held_out=held,
        check_images=min(held, CHECKED),
        check_steps=3,
        check_eot=1,
        smoothing=0.0,
        denoise=0.1,
        lr=2e-4,
        ema=0.99,
        pad=0,
        check_every=50,
    )
    metrics = harden.train(config, train.folder, run) | {"checked": config.check_images}
    settings = run / "settings.yaml"
    settings.write_text(budget.settings_of(chosen, hardened.PURIFIER))
    before, made = claim.beside("before"), claim.beside("hardened")
    for stale in (before, made):
        shutil.rmtree(stale, ignore_errors=True)  # of this plan, by its name
    hardened.build(run, out, settings, plan.name, made)
    tune.calibrate_shifts(made, train)
    claim.mark(made)
    shutil.copytree(out / tune.REPORT, made / tune.REPORT)
    out.rename(before)
    made.rename(out)
    return metrics


def _tell(file: str, found: dict[str, Any]) -> None:
    channels, height, width = found["shape"]
    print(f"{file}: {found['classes']} classes, images of {channels} x {height} x {width}")
    for change in found["changes"]:
        print(f"  {change}")
    print(f"  gradients: {found['gradients']}")
    looked = found["looked"]
    if looked and "accuracy" in looked:
        print(f"  {looked['accuracy']:.1%} of {looked['n']} labelled pictures are right, unpurified")
    if looked and "median_probability" in looked:
        sure = f"{looked['median_probability']:.0%}"
        print(f"  half of its answers to {looked['n']} pictures have a probability below {sure}")
    if looked and looked.get("warning"):
        print(f"  warning: {looked['warning']}", file=sys.stderr)


def _sum_up(plan: Plan, tuned: dict[str, Any], judged: dict[str, Any]) -> None:
    trained = _hardened(plan, tuned["hardened"]) if plan.minutes else []
    print(f"runner {tuned['runner']}", *trained, *_chosen(tuned), sep="\n")
    word = "right" if judged["labels"] == "given" else "kept"
    for row in judged["rows"]:
        shares = ", ".join(f"{100 * share[0]:.0f} % {view}" for view, share in row["kept"].items())
        print(f"  {row['setting']:<10} {row['ms']:7.1f} ms   {word}: {shares}")
    if not judged["not_attacked"]:
        print("attackers who know the defense were not tried: `metastable evaluate robust --attack suite`")
    print(f"on {judged['n']} other pictures; report: {plan.out / tune.REPORT / 'report.md'}")
