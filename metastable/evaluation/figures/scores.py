"""Score norms and prediction shifts of images, and what they detect (ADP, Figures 3 and 9).

Drawn from the outcomes of `robust`, so nothing is computed again: name its --work folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metastable.console import beside
from metastable.errors import DataError
from metastable.evaluation import cli
from metastable.evaluation.outcomes import Outcome, read_outcomes
from metastable.evaluation.robust_rows import NATURAL
from metastable.evaluation.stats import auroc

COLUMNS = 4


def roc(negatives: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of negatives and of positives above every threshold, from none to all: [T], [T]."""
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([negatives, positives]))[::-1]])
    above = [(values[None] >= thresholds[:, None]).mean(1) for values in (negatives, positives)]
    return above[0], above[1]


def norms(outcomes: list[Outcome], setting: str) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {"raw": [n], "purified": [n], "shift": [n]}} of natural images and of each attack's.

    `raw` and `purified` are score norms, `shift` prediction shifts, NaN in outcomes of older releases.

    Images that nobody attacked, because they were answered wrongly as they are, are not an attack's.
    Raises DataError if there are no natural outcomes of the setting.
    """
    mine = [o for o in outcomes if o["setting"] == setting]
    mine = [o for o in mine if o["attack"] == NATURAL or "strength" in o]
    kinds = dict.fromkeys(o["attack"] for o in mine)
    if NATURAL not in kinds:
        raise DataError(f"there are no outcomes of {setting!r} in this folder: run `robust` first")
    return {
        kind: {
            key: np.array([o.get(field, np.nan) for o in mine if o["attack"] == kind])
            for key, field in (("raw", "score"), ("purified", "purified_score"), ("shift", "shift"))
        }
        for kind in kinds
    }


def known(found: dict[str, dict[str, np.ndarray]], attack: str) -> bool:
    """Whether the prediction shifts of natural images and of the attack's were kept."""
    return not any(np.isnan(found[kind]["shift"]).any() for kind in (NATURAL, attack))


def shift_detects(
    found: dict[str, dict[str, np.ndarray]], attack: str, norm_limit: float, limit: float | None
) -> dict[str, float | None]:
    """The shift's AUROC and, with its threshold, the shares that it and either statistic flag."""
    if not known(found, attack):
        return {}
    shifts, norm = found[attack]["shift"], found[attack]["raw"]
    rates: dict[str, float | None] = {"shift_rate": None, "either_rate": None}
    if limit is not None:
        rates["shift_rate"] = round(float((shifts > limit).mean()), 4)
        rates["either_rate"] = round(float(((shifts > limit) | (norm > norm_limit)).mean()), 4)
    return {"auroc_shift": round(auroc(found[NATURAL]["shift"].tolist(), shifts.tolist()), 4), **rates}


def draw(found: dict[str, dict[str, np.ndarray]], threshold: float, path: Path) -> None:
    """A panel of histograms an attack, and the ROC curves of all."""
    attacks = [kind for kind in found if kind != NATURAL]
    columns = min(COLUMNS, len(attacks) + 1)
    rows = -(-(len(attacks) + 1) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    panels, curves, empty = grid[: len(attacks)], grid[len(attacks)], grid[len(attacks) + 1 :]
    for axes in empty:
        axes.set_axis_off()
    for axes, attack in zip(panels, attacks, strict=True):
        shown = {
            "natural": (found[NATURAL]["raw"], "#4477aa"),
            "attacked": (found[attack]["raw"], "#ee6677"),
            "natural, purified": (found[NATURAL]["purified"], "#66ccee"),
            "attacked, purified": (found[attack]["purified"], "#ccbb44"),
        }
        edges = np.histogram_bin_edges(np.concatenate([values for values, _ in shown.values()]), bins=40)
        for label, (values, color) in shown.items():
            axes.hist(values, bins=edges, density=True, alpha=0.55, color=color, label=label)
        axes.axvline(threshold, color="black", linestyle="--")
        axes.set(title=attack, xlabel="score norm")
        curves.plot(*roc(found[NATURAL]["raw"], found[attack]["raw"]), label=f"{attack}, norm")
        if known(found, attack):
            shifts = roc(found[NATURAL]["shift"], found[attack]["shift"])
            curves.plot(*shifts, linestyle="--", color=curves.lines[-1].get_color(), label=f"{attack}, shift")
    panels[0].legend(fontsize=7)
    curves.set(title="detection", xlabel="natural images flagged", ylabel="attacked images flagged")
    curves.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def add(figures: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the figure's command."""
    parser = figures.add_parser(
        "scores",
        parents=parents,
        help="score norms of natural, attacked and purified images (ADP, Figures 3 and 9)",
        description=__doc__,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of a `robust` run")
    cli.no_data(parser, "where --work has the images")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Gather the norms of one setting, and draw them."""
    loaded = cli.load_bundle(args)
    threshold = loaded.calibration.threshold
    name = cli.chosen_settings(args.settings or loaded.settings.default, loaded)[0]
    found = norms(read_outcomes(args.work / "outcomes.jsonl"), name)
    attacks = [kind for kind in found if kind != NATURAL]
    if not attacks:
        raise DataError(f"{args.work} holds no attacked images of {name!r}: run `robust` first")
    natural = found[NATURAL]["raw"]
    limit = loaded.shifts[name].threshold if name in loaded.shifts else None
    rows = [
        {
            "attack": attack,
            "n": len(found[attack]["raw"]),
            "auroc": round(auroc(natural.tolist(), found[attack]["raw"].tolist()), 4),
            "flag_rate": round(float((found[attack]["raw"] > threshold).mean()), 4),
            **shift_detects(found, attack, threshold, limit),
            "median": round(float(np.median(found[attack]["raw"])), 4),
            "median_purified": round(float(np.median(found[attack]["purified"])), 4),
        }
        for attack in attacks
    ]
    if picture := beside(args.out, ".png"):
        draw(found, threshold, picture)
    return {
        "command": "figure scores",
        "setting": name,
        "natural": {"n": len(natural), "median": round(float(np.median(natural)), 4)}
        | shift_detects(found, NATURAL, threshold, limit),
        "rows": rows,
    }
