"""A bundle that was brought becomes one that can be served: calibrated, with settings, and a report.

Thresholds and settings are found on some pictures, and judged on others.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from export import graphs
from metastable import anomaly, benign, bundle, datasets
from metastable.datasets.folder import labeller_of
from metastable.engine import assembly
from metastable.engine.local import LocalEngine
from metastable.engine.runners import Runner
from metastable.engine.runners.artifacts import GRAPHS
from metastable.errors import BundleError, MissingPackage, NoGradient
from metastable.evaluation import budget, calibrated, kept
from metastable.evaluation.cli import machine

REPORT = "report"
"""The report's files in the folder of the bundle, of which they are no part."""
RATE = 0.05
NETWORKS = "purifier", "score"
"""Of a bundle, those that denoise; the first that is there moves the chains."""
CALIBRATED = "fast", "balanced"
"""Settings whose prediction shift gets a threshold."""
JUDGED = "none", "jpeg75", "jpeg50", "fast", "balanced"


@dataclass(frozen=True)
class Wanted:
    """What settings are to do.

    Attributes:
        budget_ms: of an answer, on this machine.
        keep: share of the labels that are right without purification which must stay so.
        radius: of the transferred attack that settings are compared under.
        radii: of those in the report.
        choose_n, judge_n: most pictures to choose on and to judge on.
        seed: of attacks and chains.
    """

    budget_ms: float = 300.0
    keep: float = 0.75
    radius: Fraction = Fraction(4, 255)
    radii: tuple[Fraction, ...] = (Fraction(2, 255), Fraction(4, 255), Fraction(8, 255))
    choose_n: int = 40
    judge_n: int = 100
    seed: int = 0


def least(rate: float = RATE) -> int:
    """How many pictures a threshold needs."""
    n = 1
    while True:
        try:
            anomaly.check_rate(rate, n)
        except ValueError:
            n += 1
        else:
            return n


def purifier_of(loaded: bundle.Bundle) -> str:
    """The network that chains are moved by; BundleError where the bundle has none that denoises."""
    for name in NETWORKS:
        if name in loaded.networks:
            return name
    raise BundleError(
        f"the base of {loaded.name} has no network that denoises ({', '.join(NETWORKS)}): take another one"
    )


def tune(folder: Path, train: datasets.Images, wanted: Wanted, runner: Runner) -> dict[str, Any]:
    """Calibrate the bundle in `folder` on training pictures, and put settings into it that fit the budget.

    `runner` is one of the bundle.  Returns what was found; `candidates.png` and `.json` go into the report.
    """
    network = purifier_of(bundle.load(folder))
    calibrate(folder, train)
    loaded = bundle.load(folder)
    some = train.take(wanted.choose_n, seed=wanted.seed)
    seen, reason = _views(loaded, some, [wanted.radius], wanted.seed)
    found = budget.measure(
        loaded, runner, seen, budget_ms=wanted.budget_ms, network=network, seed=wanted.seed
    )
    says = labeller_of(loaded.classifier)
    bare = torch.cat([says(datasets.to_float(part)) for part in torch.split(some.images, kept.BATCH)])
    keep = wanted.keep * float((bare == some.labels).double().mean())
    chosen = budget.choose(found, n=len(some), budget_ms=wanted.budget_ms, keep=keep)
    bundle.set_settings(folder, budget.settings_of(chosen, network))
    calibrate_shifts(folder, train)
    report = folder / REPORT
    shutil.rmtree(report, ignore_errors=True)  # of another bundle
    report.mkdir()
    budget.draw(found, chosen, wanted.budget_ms, report / "candidates.png")
    tried = [dataclasses.asdict(one) for one in found]
    (report / "candidates.json").write_text(json.dumps(tried, indent=1) + "\n")
    return {
        "runner": runner.name,
        "chosen": dataclasses.asdict(chosen),
        "chosen_on": len(some),
        "budget_ms": wanted.budget_ms,
        "in_budget": chosen.ms <= wanted.budget_ms,
        "keeps": chosen.clean >= keep,
        "not_attacked": reason,
    }


def judge(
    folder: Path, test: datasets.Images, wanted: Wanted, runner: Runner, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Judge the settings of a tuned bundle on other pictures, and write the report; returns what is in it.

    `notes` are sentences on how the bundle came to be.
    """
    loaded = bundle.load(folder)
    some = test.take(wanted.judge_n, seed=wanted.seed)
    seen, reason = _views(loaded, some, wanted.radii, wanted.seed + 1)
    engine = LocalEngine(runner, loaded.settings, loaded.shape)
    names = [name for name in JUDGED if name in loaded.settings.by_name]
    rows = kept.measure(loaded, engine, seen, names, wanted.seed)
    found = {
        "bundle": loaded.name,
        "digest": loaded.digest,
        "n": len(some),
        "labels": "given" if seen.labelled else "those of the bare classifier on the clean picture",
        "runner": runner.name,
        "machine": machine(),
        "not_attacked": reason,
        "notes": list(notes),
        "rows": rows,
    }
    report = folder / REPORT
    report.mkdir(exist_ok=True)
    (report / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (report / "report.md").write_text(page(found))
    draw(rows, report / "report.png")
    return found


def runner_of(loaded: bundle.Bundle) -> Runner:
    """The fastest runner here, as the server would choose it."""
    return assembly.runner_for(loaded, artifacts={GRAPHS: graphs.build(loaded)})


def calibrate(folder: Path, train: datasets.Images) -> None:
    """Set the score norm's threshold on training pictures, half of them with benign changes."""
    loaded = bundle.load(folder)
    seen = _changed(train.take(calibrated.MOST))
    network = "score" if "score" in loaded.networks else purifier_of(loaded)
    bundle.set_anomaly(folder, calibrated.of(loaded, seen, false_positive_rate=RATE, network=network))


def calibrate_shifts(folder: Path, train: datasets.Images, n: int = 200) -> None:
    """Set the thresholds of the prediction shift of the settings CALIBRATED."""
    loaded = bundle.load(folder)
    assert loaded.anomaly is not None
    seen = _changed(train.take(n))
    names = [name for name in CALIBRATED if name in loaded.settings.by_name]
    shifts = {name: calibrated.shift_of(loaded, name, seen, false_positive_rate=RATE) for name in names}
    bundle.set_anomaly(folder, loaded.anomaly, shifts)


def _changed(some: datasets.ImageSet) -> calibrated.Changed:
    return calibrated.changed(some, augment=benign.DEFAULT)


def _views(
    loaded: bundle.Bundle, some: datasets.ImageSet, radii: Sequence[Fraction], seed: int
) -> tuple[kept.Views, str]:
    """The views, and why none is attacked; empty where they are."""
    try:
        return kept.views(loaded, some, radii, seed), ""
    except (NoGradient, MissingPackage) as error:
        return kept.views(loaded, some, (), seed), str(error)


def page(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    views = list(found["rows"][0]["kept"])
    word = "right" if found["labels"] == "given" else "kept"
    head = [
        "setting",
        "ms an answer",
        *(f"{word}, {name}" for name in views),
        "flagged clean",
        "shifted clean",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in found["rows"]:
        shares = [row["kept"][name] for name in views] + [row["flagged"][kept.CLEAN]]
        shifted = _share(row["shifted"][kept.CLEAN]) if row["shifted"] else ""
        lines.append(
            "| " + " | ".join([f"`{row['setting']}`", f"{row['ms']:g}", *map(_share, shares), shifted]) + " |"
        )
    attacked = (
        f"Nothing was attacked: {found['not_attacked']}."
        if found["not_attacked"]
        else f"A radius is that of l_inf PGD with {kept.STEPS} steps on the bare classifier, transferred: "
        "the attacker does not know of the defense. **One who does was not tried**, and leaves less, often "
        "nothing (`metastable evaluate robust --attack suite`)."
    )
    return "\n".join(
        [
            f"# {found['bundle']}",
            "",
            f"{found['n']} pictures that were neither calibrated on nor chosen by. Labels: "
            f"{found['labels']}. Shares in per cent with 95 % Wilson intervals. Runner {found['runner']}; "
            f"{found['machine']}.",
            "",
            *(f"- {note}" for note in found["notes"]),
            "",
            *lines,
            "",
            attacked,
            "",
            *_aurocs(found["rows"]),
            "",
            "![labels kept](report.png)",
            "",
            "![what was tried](candidates.png)",
            "",
        ]
    )


def _aurocs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    views = [name for name in rows[0]["kept"] if name != kept.CLEAN]
    if not views:
        return []
    lines = ["| AUROC against clean pictures | " + " | ".join(views) + " |", "|---" * (len(views) + 1) + "|"]
    named = [("score norm", rows[0]["auroc"]["norm"])]
    named += [
        (f"prediction shift, `{row['setting']}`", row["auroc"]["shift"])
        for row in rows
        if "shift" in row["auroc"]
    ]
    return lines + [
        f"| {name} | " + " | ".join(f"{values[view]:.3f}" for view in views) + " |" for name, values in named
    ]


def _share(share: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in share)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Labels kept by setting, a bar a view, with intervals."""
    views = list(rows[0]["kept"])
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(views)
    for index, view in enumerate(views):
        shares = torch.tensor([row["kept"][view] for row in rows]) * 100
        at = [place + index * width for place in range(len(rows))]
        error = torch.stack([shares[:, 0] - shares[:, 1], shares[:, 2] - shares[:, 0]]).clamp(min=0).numpy()
        axes.bar(at, shares[:, 0].numpy(), width, yerr=error, label=view)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(rows))], [row["setting"] for row in rows])
    axes.set(ylabel="labels kept or right, %", ylim=(0, 100))
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
