"""The flag among honest users: natural test images under benign changes (metastable.benign).

For every change: the share of images that the anomaly flag refuses, and the share that settings still answer
rightly.  Nothing here is an attack, so every flag is a false one.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from metastable import benign, console, datasets
from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.console import beside
from metastable.engine.local import LocalEngine
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import DataError
from metastable.evaluation import cli
from metastable.evaluation.outcomes import judge
from metastable.evaluation.portion import portion
from metastable.evaluation.stats import wilson

BATCH = 16
SETTINGS = ("none", "fast")
"""Judged unless told otherwise, where the bundle has them."""


@dataclass(frozen=True)
class HonestConfig:
    """What the figures depend on.

    Attributes:
        settings: judged on the first `judged` images; none if empty or `judged` is 0.
        changes: names in metastable.benign.CHANGES.
        n: images whose flag is counted.
        seed: of noise in changes and of the chains.
    """

    settings: tuple[str, ...]
    changes: tuple[str, ...]
    n: int
    judged: int
    seed: int = 0
    bundle: str = ""
    data: str = ""


def measure(bundle: Bundle, test: datasets.ImageSet, config: HonestConfig) -> list[dict[str, Any]]:
    """Rows {change, says, n, flagged: [share, low, high], right: {setting: [share, low, high]}}, in order.

    Intervals are Wilson's.  `test` has the images.  Raises BundleError without a calibration, and DataError
    for fewer images than `config` asks for, and for names of changes that do not exist.
    """
    calibration = bundle.calibration
    if not 0 <= config.judged <= config.n == len(test) or config.n < 1:
        raise DataError(f"{config.n} images, {config.judged} of them judged, do not fit {len(test)} images")
    engine = LocalEngine(TorchRunner(bundle.networks, bundle.classifier), bundle.settings, bundle.shape)
    rows = []
    for name in tqdm(config.changes, desc="changes", mininterval=2):
        images = datasets.to_float(benign.changed(test.images, name, config.seed))
        norms = score_norms(images, bundle.scores[calibration.network])
        right = {}
        for setting in config.settings if config.judged else ():
            hits = 0
            for start in range(0, config.judged, BATCH):
                pick = range(start, min(start + BATCH, config.judged))
                seeds = [(config.seed << 32) + i for i in pick]
                found = judge(bundle, engine, images[pick], norms[pick], seeds, setting)
                hits += sum(o["predicted"] == int(test.labels[i]) for i, o in zip(pick, found, strict=True))
            right[setting] = _share(hits, config.judged)
        flagged = _share(int(calibration.flags(norms).sum()), config.n)
        says = benign.CHANGES[name].says
        rows.append({"change": name, "says": says, "n": config.n, "flagged": flagged, "right": right})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A row a change: flagged, and right by setting, in per cent with intervals."""
    settings = list(rows[0]["right"])
    head = ["change", "name", "flagged", *(f"`{name}` right" for name in settings)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        shares = [row["flagged"], *(row["right"][name] for name in settings)]
        cells = [row["says"], f"`{row['change']}`", *(_per_cent(share) for share in shares)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], rate: float, path: Path) -> None:
    """Bars with intervals: flagged by change, beside the calibrated `rate`, and right by setting."""
    settings = list(rows[0]["right"])
    figure = Figure(figsize=(11 if settings else 6.5, 0.27 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2 if settings else 1, sharey=True, squeeze=False)[0]
    _bars(panels[0], [row["flagged"] for row in rows], 0.0, 0.7, "#ee6677", "flagged")
    panels[0].axvline(rate, color="black", linestyle="--", label=f"calibrated for {100 * rate:g} %")
    panels[0].set(xlabel="flagged (Wilson 95 %)", xlim=(0, 1.02))
    panels[0].set_yticks(range(len(rows)), [row["says"] for row in rows])
    panels[0].invert_yaxis()
    height = 0.8 / max(len(settings), 1)
    for at, name in enumerate(settings):
        color = ("#4477aa", "#228833", "#ccbb44", "#66ccee", "#aa3377")[at % 5]
        shift = (at - (len(settings) - 1) / 2) * height
        _bars(panels[1], [row["right"][name] for row in rows], shift, 0.9 * height, color, name)
        panels[1].set(xlabel="answered rightly (Wilson 95 %)", xlim=(0, 1.02))
    figure.legend(loc="outside upper center", ncol=6, fontsize=8)
    figure.savefig(path, dpi=110)


def _bars(axes: Axes, shares: list[list[float]], shift: float, height: float, color: str, label: str) -> None:
    values = np.array(shares)
    error = np.abs(values[:, 1:] - values[:, :1]).T
    at = np.arange(len(values)) + shift
    axes.barh(
        at, values[:, 0], height, xerr=error, color=color, label=label, error_kw={"capsize": 2, "lw": 1}
    )


def _share(successes: int, n: int) -> list[float]:
    low, high = wilson(successes, n)
    return [round(value, 4) for value in (successes / n, low, high)]


def _per_cent(share: list[float]) -> str:
    value, low, high = (100 * part for part in share)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command; `parents` as of `cli.common` and `cli.chosen`."""
    parser = commands.add_parser(
        "honest",
        parents=parents,
        help="how often the flag refuses honest images under benign changes",
        description=__doc__,
    )
    parser.add_argument("--n", type=int, default=1000, help="test images whose flag is counted")
    parser.add_argument(
        "--judged", type=int, default=100, help="of them answered by --settings (default: none,fast)"
    )
    parser.add_argument(
        "--changes", default=",".join(benign.CHANGES), help="benign changes, names separated by commas"
    )
    cli.add_skip(parser)
    parser.add_argument("--seed", type=console.seed, default=0, help="of changes and answers")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Measure; write Markdown and a picture beside --out."""
    loaded = cli.load_bundle(args)
    calibration = loaded.calibration
    test = portion(cli.test_images(args, loaded), args.n, skip=args.skip)
    usual = ",".join(name for name in SETTINGS if name in loaded.settings.names)
    config = HonestConfig(
        settings=cli.chosen_settings(args.settings or usual, loaded) if args.judged else (),
        changes=benign.named(args.changes),
        n=len(test),
        judged=min(args.judged, len(test)),
        seed=args.seed,
        bundle=f"{loaded.digest} {loaded.settings.digest()}",
        data=test.digest(),
    )
    rows = measure(loaded, test, config)
    text = cli.noted(args, markdown(rows))
    if (page := beside(args.out, ".md")) and (picture := beside(args.out, ".png")):
        page.write_text(text)
        draw(rows, calibration.false_positive_rate, picture)
    print(text)
    said = {"threshold": calibration.threshold, "calibrated_rate": calibration.false_positive_rate}
    return {"command": "honest", "rows": rows, **said, "config": asdict(config), "machine": cli.machine()}
