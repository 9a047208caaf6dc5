"""Tables as Markdown, and their figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metastable.evaluation.outcomes import Outcome


def markdown(summary: dict[str, Any]) -> str:
    """The table as Markdown: one row a setting."""
    lines = [
        "| setting | chains: natural | chains: PGD | steps | natural accuracy | transfer-PGD accuracy | "
        "flagged: natural | flagged: PGD | ms: natural | ms: PGD |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = {(row["setting"], row["kind"]): row for row in summary["rows"]}
    for name in dict.fromkeys(row["setting"] for row in summary["rows"]):
        clean, attacked = rows[name, "natural"], rows[name, "pgd"]
        lines.append(
            f"| `{name}` | {clean['chains']:g} | {attacked['chains']:g} | {clean['steps']:g} | "
            f"{_share(clean)} | {_share(attacked)} | {100 * clean['flag_rate']:.1f} % | "
            f"{100 * attacked['flag_rate']:.1f} % | {clean['ms']:g} | {attacked['ms']:g} |"
        )
    return "\n".join(lines) + "\n"


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def draw(summary: dict[str, Any], outcomes: list[Outcome], threshold: float, path: Path) -> None:
    """Accuracy by setting with intervals, and the score norms of natural and attacked images."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    bars, histogram = figure.subplots(1, 2)
    names = list(dict.fromkeys(row["setting"] for row in summary["rows"]))
    for offset, (kind, color) in enumerate((("natural", "#4477aa"), ("pgd", "#ee6677"))):
        rows = [row for row in summary["rows"] if row["kind"] == kind]
        height = np.array([row["accuracy"] for row in rows])
        error = np.abs(np.array([[row["low"], row["high"]] for row in rows]).T - height)
        at = np.arange(len(names)) + 0.4 * (offset - 0.5)
        bars.bar(at, height, 0.38, yerr=error, color=color, label=kind, capsize=3)
        scores = [o["score"] for o in outcomes if o["kind"] == kind and o["setting"] == names[0]]
        histogram.hist(scores, bins=60, alpha=0.6, color=color, label=kind, density=True)
    bars.set_xticks(range(len(names)), names)
    bars.set(ylim=(0, 1.12), ylabel="accuracy (Wilson 95 %)", title="natural and transfer PGD, 8/255")
    bars.legend(loc="upper right", ncol=2)
    histogram.axvline(threshold, color="black", linestyle="--", label="threshold")
    histogram.set(xlabel="score norm of the raw image", title=f"detection, AUROC {summary['auroc']:.3f}")
    histogram.legend()
    figure.savefig(path, dpi=110)
