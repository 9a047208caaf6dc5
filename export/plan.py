"""What `bring` does, one step after the other, whoever asks for it: the command or Python."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export import bring, hardened, tune
from export.tune import Wanted
from metastable import bundle
from metastable.datasets import Folder
from metastable.datasets.folder import Split, labeller_of
from metastable.errors import DataError
from metastable.evaluation import budget
from metastable.training import harden
from metastable.training.harden_config import HardenConfig

HARDENED_BATCH = 8


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

    newcomer: bring.Newcomer
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
    few.
    """
    found = bring.bring(plan.newcomer, plan.base, plan.out, name=plan.name, pictures=plan.pictures)
    _tell(plan.newcomer.file.name, found)
    if plan.pictures is None:
        print("no thresholds yet, so it cannot be served: `metastable calibrate`, or bring it with --images")
        return found
    train, test = _splits(plan, plan.pictures)
    runner = tune.runner_of(bundle.load(plan.out))
    tuned = tune.tune(plan.out, train, plan.wanted, runner)
    if plan.minutes:
        tuned["hardened"] = _harden(plan, budget.Candidate(**tuned["chosen"]), train)
        runner = tune.runner_of(bundle.load(plan.out))
    judged = tune.judge(plan.out, test, plan.wanted, runner)
    _sum_up(plan.out, tuned, judged)
    return found | {"tuned": tuned, "judged": judged}


def _splits(plan: Plan, pictures: Folder) -> tuple[Split, Split]:
    """Pictures to calibrate and choose on, and others to judge on; DataError for too few."""
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
        train, test = fitted(pictures).split("train"), fitted(pictures).split("test")
    else:
        train = fitted(pictures, test_share=0).split("train")
        test = fitted(plan.judged, test_share=1).split("test")
    if len(train) < (least := tune.least()):
        raise DataError(
            f"{pictures.path} has {len(train)} pictures to calibrate on, and a threshold that flags "
            f"{tune.RATE:.0%} needs {least}: give more, lower --test-share, or cut each into --crops"
        )
    return train, test


def _harden(plan: Plan, chosen: budget.Candidate, train: Split) -> dict[str, Any]:
    """Train the purifier against attacks on the whole defense, and put it into the bundle.

    The labels are the pictures', or the classifier's own.  The bundle as it was stays in OUT-before, the run
    in OUT-hardening, from which it goes on if it is cut off.
    """
    before, run = (plan.out.with_name(plan.out.name + ending) for ending in ("-before", "-hardening"))
    if (before / bundle.MANIFEST).is_file():  # of a run that was cut off, or of another classifier
        shutil.rmtree(before)
    plan.out.rename(before)
    held = max(1, len(train) // 5)
    config = HardenConfig(
        mode="purifier",
        bundle=str(before),
        start=tune.purifier_of(bundle.load(before)),
        sigma=chosen.sigma,
        eps=float(plan.wanted.radius) / 2,
        fit_minutes=plan.minutes,
        batch=min(HARDENED_BATCH, len(train) - held),
        held_out=held,
        check_images=min(held, 20),
        check_steps=3,
        check_eot=1,
        smoothing=0.0,
        denoise=0.1,
        lr=2e-4,
        ema=0.99,
        pad=0,
        check_every=50,
    )
    metrics = harden.train(config, train.folder, run)
    settings = run / "settings.yaml"
    settings.write_text(budget.settings_of(chosen, hardened.PURIFIER))
    hardened.build(run, before, settings, plan.name, plan.out)
    tune.calibrate_shifts(plan.out, train)
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
    if looked and looked.get("warning"):
        print(f"  warning: {looked['warning']}", file=sys.stderr)


def _sum_up(out: Path, tuned: dict[str, Any], judged: dict[str, Any]) -> None:
    chosen = tuned["chosen"]
    print(
        f"balanced: {chosen['chains']} chains of {chosen['steps']} steps at sigma {chosen['sigma']:g}, "
        f"{chosen['ms']:.0f} ms an answer ({tuned['runner']}, budget {tuned['budget_ms']:g})"
    )
    if not tuned["in_budget"]:
        print("  nothing answers within the budget here: this is the cheapest", file=sys.stderr)
    if not tuned["keeps"]:
        print("  nothing within the budget keeps the wanted share of clean labels", file=sys.stderr)
    for row in judged["rows"]:
        shares = ", ".join(f"{100 * share[0]:.0f} % {view}" for view, share in row["kept"].items())
        print(f"  {row['setting']:<10} {row['ms']:7.1f} ms   kept: {shares}")
    print(f"report: {out / tune.REPORT / 'report.md'}")
