"""The rows of a robustness table: what the outcomes say, as numbers, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metastable.attacks.catalogue import Plan
from metastable.evaluation.outcomes import Outcome
from metastable.evaluation.stats import auroc, wilson
from metastable.settings import Setting

NATURAL = "natural"
Share = list[float]
"""A proportion and the ends of its Wilson interval."""


@dataclass(frozen=True)
class Row:
    """A defense and an attack on it.

    Attributes:
        setting: the defense, by its name in the bundle.
        attack: a name of metastable.attacks.catalogue.
        n: the first n images are attacked.
    """

    setting: str
    attack: str
    n: int


def summarize_row(
    row: Row, outcomes: Iterable[Outcome], setting: Setting, made: Plan, eps: float, norm: str
) -> dict[str, Any]:
    """What the outcomes say of a row.

    `natural`, `robust`, `unbroken` (metastable.evaluation.robust) and `right_or_flagged` are over all n
    images; `flag_rate` and `auroc` are of the images that were attacked, against all n natural ones.
    """
    mine = [o for o in outcomes if o["setting"] == row.setting and o["index"] < row.n]
    natural = [o for o in mine if o["attack"] == NATURAL]
    these = [o for o in mine if o["attack"] == row.attack]
    attacked = [o for o in these if "strength" in o]
    scores = [[o["score"] for o in some] for some in (natural, attacked)]
    return {
        "setting": row.setting,
        "attack": row.attack,
        "gradient": made.mode,
        "n": len(these),
        "natural": _share([_right(o) for o in natural]),
        "robust": _share([_right(o) for o in these]),
        "unbroken": _share([not o["broken"] for o in these]) if made.check else None,
        "right_or_flagged": _share([_right(o) or o["flagged"] for o in these]),
        "attacked": len(attacked),
        "flag_rate": _share([o["flagged"] for o in attacked]) if attacked else None,
        "flag_rate_natural": _share([o["flagged"] for o in natural]),
        "auroc": round(auroc(*scores), 4) if attacked else None,
        "norm": norm,
        "eps": eps,
        "K": setting.steps,
        "H": setting.most_chains,
        "chains": round(float(np.mean([o["chains"] for o in these])), 1),
        "delta": setting.delta,
        "eot": made.samples,
        "check": made.check,
        "parameters": repr(made.attack),
        "seconds": round(float(sum(o["seconds"] for o in these)), 1),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows defense x attack, accuracies in per cent with their Wilson intervals."""
    lines = [
        "| setting | attack | gradient | ball | EOT | K | H | H_def | n | natural | robust | unbroken | "
        "right or flagged | flagged | AUROC | s an image |",
        "|---" * 16 + "|",
    ]
    for row in rows:
        shares = " | ".join(
            shown(row[key]) for key in ("natural", "robust", "unbroken", "right_or_flagged", "flag_rate")
        )
        area = "–" if row["auroc"] is None else f"{row['auroc']:.3f}"
        each = row["seconds"] / row["attacked"] if row["attacked"] else 0
        lines.append(
            f"| `{row['setting']}` | {row['attack']} | {row['gradient']} | {row['norm']} "
            f"{length(row['eps'])} | {row['eot']} | {row['K']} | {row['H']} | {row['check'] or '–'} | "
            f"{row['n']} | {shares} | {area} | {each:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Natural, robust and unbroken accuracy of every row with their intervals, and its detection."""
    figure = Figure(figsize=(10, 1.6 + 0.4 * len(rows)), layout="constrained")
    accuracy, detection = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    at = np.arange(len(rows))
    for offset, (key, color) in enumerate(
        (("natural", "#4477aa"), ("robust", "#ee6677"), ("unbroken", "#aa3377"))
    ):
        known = [i for i, row in enumerate(rows) if row[key]]
        if known:
            values = np.array([rows[i][key] for i in known])
            error = np.abs(values[:, 1:] - values[:, :1]).T
            accuracy.errorbar(
                values[:, 0],
                at[known] + 0.2 * (offset - 1),
                xerr=error,
                fmt="o",
                color=color,
                capsize=3,
                label=key,
            )
    accuracy.set_yticks(at, [f"{row['setting']}, {row['attack']} (n = {row['n']})" for row in rows])
    accuracy.invert_yaxis()
    title = f"{rows[0]['norm']} {length(rows[0]['eps'])}"
    accuracy.set(xlim=(0, 1.02), xlabel="accuracy (Wilson 95 %)", title=title)
    accuracy.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncol=3, frameon=False)
    areas = [np.nan if row["auroc"] is None else row["auroc"] for row in rows]
    detection.plot(areas, at, "s", color="#228833")
    detection.axvline(0.5, color="gray", linewidth=0.8)
    detection.set(xlim=(0, 1.02), xlabel="AUROC of the score norm", title="detection")
    figure.savefig(path, dpi=110)


def _right(outcome: Outcome) -> bool:
    return bool(outcome["label"] == outcome["predicted"])


def _share(values: list[bool]) -> Share:
    low, high = wilson(sum(values), len(values))
    return [round(v, 4) for v in (sum(values) / len(values), low, high)]


def shown(share: Share | None) -> str:
    """A share and its interval in per cent, a dash where there is none."""
    if share is None:
        return "–"
    value, low, high = (100 * v for v in share)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def length(eps: float) -> str:
    """eps as people write it: a whole number of 255ths, or a decimal."""
    whole = 255 * eps
    return f"{whole:g}/255" if abs(whole - round(whole)) < 1e-6 and whole < 64 else f"{eps:g}"
