"""Suites as Markdown and as a figure: the worst case by image, attack by attack and over the radius."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metastable.evaluation.robust_rows import length, shown


def markdown(suites: list[dict[str, Any]]) -> str:
    """A row for each setting and radius, then one for each attack."""
    lines = [
        "| setting | ball | K | H | n | natural | **worst case** | right or flagged | natural flagged: "
        "norm, shift, either | minutes of attack |",
        "|---" * 10 + "|",
    ]
    for suite in suites:
        lines.append(
            f"| `{suite['setting']}` | {_ball(suite)} | {suite['K']} | {suite['H']} | {suite['n']} | "
            f"{shown(suite['natural'])} | **{shown(suite['worst_case'])}** | "
            f"{shown(suite['right_or_flagged'])} | {_flags(suite)} | "
            f"{suite['seconds'] / 60:.1f} |"
        )
    lines += [
        "",
        "| setting | ball | attack | gradient | EOT | attacked | wrong | wrong and unflagged | "
        "flagged: norm, shift, either | newly lost | left of n | s an image |",
        "|---" * 12 + "|",
    ]
    for suite in suites:
        for row in suite["attacks"]:
            each = row["seconds"] / row["attacked"] if row["attacked"] else 0
            lines.append(
                f"| `{suite['setting']}` | {_ball(suite)} | {row['attack']} | {row['gradient']} | "
                f"{row['eot']} | {row['attacked']} | {row['broken']} | {row['broken_unflagged']} | "
                f"{row['flagged']}, {_or_dash(row.get('shifted'))}, {row.get('noticed', row['flagged'])} | "
                f"{row['newly_lost']} | {row['left']} of {suite['n']} | {each:.1f} |"
            )
    return "\n".join(lines) + "\n"


def draw(suites: list[dict[str, Any]], path: Path) -> None:
    """What is left of each setting: over the radius where there are several, otherwise attack by attack."""
    names = list(dict.fromkeys(suite["setting"] for suite in suites))
    several = len({suite["eps"] for suite in suites}) > 1
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        mine = [suite for suite in suites if suite["setting"] == name]
        color = f"C{place}"
        if several:
            _curve(axes, mine, name, color)
        else:
            [suite] = mine
            left = [suite["natural"][0], *(row["left"] / suite["n"] for row in suite["attacks"])]
            axes.plot(range(len(left)), left, marker="o", color=color, label=name)
            value, low, high = suite["worst_case"]
            axes.errorbar(len(left) - 1, value, [[value - low], [high - value]], color=color, capsize=3)
    if several:
        axes.set(
            xlabel=f"radius of the ball ({suites[0]['norm']}, in 255ths)",
            ylabel="answered rightly under every attack",
        )
    else:
        labels = ["natural", *(row["attack"] for row in suites[0]["attacks"])]
        axes.set_xticks(range(len(labels)), labels)
        axes.set(ylabel="answered rightly so far")
        axes.set_title(f"{_ball(suites[0])}, n = {suites[0]['n']}, Wilson 95 %")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def _flags(suite: dict[str, Any]) -> str:
    """Natural images flagged by the score norm, by the prediction shift and by either, in per cent."""
    norm = suite["flagged_natural"]
    shares = norm, suite.get("shifted_natural"), suite.get("noticed_natural", norm)
    return ", ".join("-" if share is None else f"{100 * share[0]:.0f}" for share in shares) + " %"


def _or_dash(count: int | None) -> str:
    return "-" if count is None else str(count)


def _ball(suite: dict[str, Any]) -> str:
    return f"{suite['norm']} {length(suite['eps'])}"


def _curve(axes: Any, suites: list[dict[str, Any]], name: str, color: str) -> None:
    """Worst case over the radius with intervals, the natural accuracy at 0; dashed: flags refused."""
    radii = [0.0, *(255 * suite["eps"] for suite in suites)]
    shares = np.array([suites[0]["natural"], *(suite["worst_case"] for suite in suites)])
    error = np.abs(shares[:, 1:] - shares[:, :1]).T
    label = f"{name} (n = {suites[0]['n']})"
    axes.errorbar(radii, shares[:, 0], yerr=error, marker="o", capsize=3, color=color, label=label)
    if all(suite["right_or_flagged"] for suite in suites):
        refused = [suite["right_or_flagged"][0] for suite in suites]
        axes.plot(
            radii[1:], refused, marker="s", linestyle="--", color=color, label=f"{name}, right or flagged"
        )
