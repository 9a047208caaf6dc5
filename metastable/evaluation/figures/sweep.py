"""Accuracy against one parameter of defense or attack (Hill 2021, Figures 4, 5 and 6).

`K`: steps of the defense; `eps`: the attack's ball; `N`: attack steps; `H_adv`: EOT samples; `H_def`:
chains of the defense, which are as many as confirm a break.  Every point is a run of `robust` in a
folder of its own, so a sweep is resumed by image.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metastable import datasets
from metastable.attacks.catalogue import ATTACKS
from metastable.bundle import Bundle
from metastable.console import beside
from metastable.errors import DataError
from metastable.evaluation import cli, robust
from metastable.evaluation.groups import RobustConfig
from metastable.evaluation.portion import portion
from metastable.evaluation.robust_rows import Row
from metastable.settings import Setting

VARIED = ("K", "eps", "N", "H_adv", "H_def")


def varied(
    what: str, value: Fraction, setting: Setting, config: RobustConfig
) -> tuple[Setting, RobustConfig]:
    """The setting and the attack with one parameter of VARIED changed; DataError for half a chain."""
    if what == "eps":
        return setting, dataclasses.replace(config, eps=float(value))
    whole = int(value)
    if whole != value or whole < 1:
        raise DataError(f"{what} must be a whole number from 1, not {value}")
    if what == "K":
        return setting.moving(steps=whole), config
    if what == "H_def":
        chains = dataclasses.replace(setting, chains=whole, delta=None)
        return chains, dataclasses.replace(config, check=whole)
    if what == "N":
        return setting, dataclasses.replace(config, steps=whole)
    return setting, dataclasses.replace(config, samples=whole)


def measure(
    bundle: Bundle,
    test: datasets.ImageSet,
    what: str,
    values: Sequence[Fraction],
    rows: Sequence[Row],
    config: RobustConfig,
    out: Path,
) -> list[dict[str, Any]]:
    """Rows of `robust` with their `value`, one for each value and row."""
    found = []
    for value in values:
        for row in rows:
            setting, attacked = varied(what, value, bundle.settings[row.setting], config)
            only = dataclasses.replace(bundle.settings, by_name={row.setting: setting})
            alone = dataclasses.replace(bundle, settings=only)
            folder = out / f"{what}-{str(value).replace('/', '_')}"
            [measured] = robust.measure(alone, test, [row], attacked, folder)
            found.append({"value": float(value), **measured})
    return found


def draw(rows: list[dict[str, Any]], what: str, path: Path) -> None:
    """Natural, robust and unbroken accuracy over the values, a panel a setting."""
    names = list(dict.fromkeys(row["setting"] for row in rows))
    figure = Figure(figsize=(4.6 * len(names), 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        mine = [row for row in rows if row["setting"] == name]
        for key, color in (("natural", "#4477aa"), ("robust", "#ee6677"), ("unbroken", "#aa3377")):
            known = [row for row in mine if row[key]]
            if known:
                shares = np.array([row[key] for row in known])
                error = np.abs(shares[:, 1:] - shares[:, :1]).T
                at = [255 * row["value"] if what == "eps" else row["value"] for row in known]
                axes.errorbar(at, shares[:, 0], yerr=error, marker="o", capsize=3, color=color, label=key)
        axes.set_title(f"{name}, {mine[0]['attack']}, n = {mine[0]['n']}", fontsize=9)
        axes.set_xlabel("eps, in 255ths" if what == "eps" and mine[0]["norm"] == "linf" else what)
        axes.set_ylim(0, 1.02)
    panels[0].set_ylabel("accuracy (Wilson 95 %)")
    panels[0].legend()
    figure.savefig(path, dpi=110)


def add(figures: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the figure's command."""
    parser = figures.add_parser(
        "sweep",
        parents=parents,
        help="accuracy against one parameter of defense or attack (Hill 2021, Figures 4, 5 and 6)",
        description=__doc__,
    )
    parser.add_argument("--vary", required=True, choices=VARIED, help="the parameter")
    parser.add_argument(
        "--values", type=values, required=True, help="of the parameter, such as 1,10,100 or 2/255,4/255"
    )
    parser.add_argument("--attack", default="bpda-eot", choices=tuple(ATTACKS), help="the attack")
    parser.add_argument("--n", type=int, default=100, help="test images")
    cli.attack_arguments(parser)
    cli.add_work(parser)
    parser.set_defaults(run=run)


def values(text: str) -> list[Fraction]:
    """Exact numbers, separated by commas."""
    return [cli.ratio(one) for one in text.split(",")]


def run(args: argparse.Namespace) -> cli.Summary:
    """Measure the sweep and draw it."""
    loaded = cli.load_bundle(args)
    test = cli.test_images(args, loaded)
    asked = ("skip", "norm", "eps", "step", "steps", "samples", "check", "batch", "seed")
    config = RobustConfig(**{name: getattr(args, name) for name in asked}, data=test.digest())
    wanted = [Row(name, args.attack, args.n) for name in cli.chosen_settings(args.settings, loaded)]
    rows = measure(
        loaded, portion(test, args.n, skip=args.skip), args.vary, args.values, wanted, config, args.work
    )
    if picture := beside(args.out, ".png"):
        draw(rows, args.vary, picture)
    return {"command": "figure sweep", "vary": args.vary, "rows": rows, "machine": cli.machine()}
