"""Figures of a report, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from loadtest import statistics
from loadtest.figures import Point
from loadtest.records import Record
from metastable.evaluation.stats import auroc

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
MARKERS = "osD^vP*"


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def latency(records: Sequence[Record], arms: Sequence[str], objective_ms: float) -> Figure:
    """Empirical distribution of each arm's latency; the curve ends below 1 where answers are missing."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        waited = np.sort([r.waited_ms for r in records if r.arm == arm and r.measured])
        known = waited[np.isfinite(waited)]
        if len(known):
            shares = np.arange(1, len(known) + 1) / len(waited)
            axes.step(known, shares, where="post", color=color(place), label=arm)
            axes.set_xscale("log")
            _plain(axes.xaxis)
    axes.axvline(objective_ms, color="black", linestyle=":", label=f"objective, {objective_ms:g} ms")
    axes.set(ylim=(0, 1.02), xlabel="ms from when the request was due", ylabel="share of requests")
    axes.set_title("Latency")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def timeline(records: Sequence[Record], arms: Sequence[str]) -> Figure:
    """Every request of the run: latency over the time at which it was due; crosses got no answer."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        for answered, marker, size in ((True, ".", 16), (False, "x", 30)):
            these = [r for r in records if r.arm == arm and r.answered == answered]
            if not these:
                continue
            at, waited = [r.at for r in these], [max(r.latency_ms, 0.01) for r in these]
            shades = [to_rgba(color(place), 1.0 if r.measured else 0.25) for r in these]
            label = arm if answered else f"{arm}: no answer"
            axes.scatter(at, waited, s=size, marker=marker, color=shades, label=label)
    axes.set(xlabel="seconds after the run's start", ylabel="ms", yscale="log")
    _plain(axes.yaxis)
    axes.set_title("Timeline (pale: warm-up)")
    axes.grid(alpha=0.3)
    _legend(axes)
    return figure


def frontier(points: Sequence[Point], xlabel: str, what: str = "accuracy") -> Figure:
    """Accuracy of every arm and source over what it costs.

    Args:
        points: an arm each.
        what: how the accuracy is called.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row.source for point in points for row in point.sources))
    for place, name in enumerate(names):
        drawn = []
        for point in points:
            rows = [r for r in point.sources if r.source == name and r.accuracy]
            if rows and point.x is not None:
                drawn.append((point.x, point, rows[0].accuracy))
        drawn.sort(key=lambda one: one[0])
        if not drawn:
            continue
        x = np.array([at for at, *_ in drawn])
        value, low, high = np.array([accuracy for *_, accuracy in drawn]).T
        sides = [
            [max(0.0, at - (point.low or at)) for at, point, _ in drawn],
            [max(0.0, (point.high or at) - at) for at, point, _ in drawn],
        ]
        # Of a share of 0 or 1, rounding may put an end of the interval on the wrong side of it.
        errors = np.clip([value - low, high - value], 0, None)
        axes.errorbar(
            x,
            value,
            xerr=sides,
            yerr=errors,
            label=name,
            color=color(place),
            marker=MARKERS[place % len(MARKERS)],
            capsize=2,
            linewidth=0.8,
        )
    _name_arms(axes, points)
    axes.set(ylim=(-0.02, 1.16), xlabel=xlabel, ylabel=f"{what} (Wilson 95 %)")
    axes.set_title("Frontier")
    axes.grid(alpha=0.3)
    _legend(axes)
    return figure


def _plain(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers, at 1, 2 and 5 times the powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    """A legend if there is anything to name: matplotlib warns of an empty one."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _name_arms(axes: Axes, points: Sequence[Point]) -> None:
    known = [(point.x, point.arm) for point in points if point.x is not None]
    if known:
        axes.set_xscale("log")
        _plain(axes.xaxis)
    for place, (x, arm) in enumerate(sorted(known)):
        # Two heights, so that names of near arms do not lie on each other.
        axes.annotate(arm, (x, 1.03 + 0.06 * (place % 2)), ha="center", fontsize=9)


def roc(records: Sequence[Record], arm: str) -> Figure | None:
    """The anomaly score's ROC for every attacked source of an arm; None without clean or attacked answers."""
    clean, attacked = _scores(records, arm)
    if not clean or not attacked:
        return None
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, (source, scores) in enumerate(attacked.items()):
        false, true = statistics.roc(clean, scores)
        label = f"{source}: AUROC {auroc(clean, scores):.3f}"
        axes.plot(false, true, color=color(place), label=label)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.6, linestyle=":")
    axes.set(xlabel="clean images flagged", ylabel="attacked images flagged", title="Detection by score norm")
    axes.legend(loc="lower right")
    return figure


def _scores(records: Sequence[Record], arm: str) -> tuple[list[float], dict[str, list[float]]]:
    clean: list[float] = []
    attacked: dict[str, list[float]] = {}
    for record in records:
        if record.arm == arm and record.measured and record.verdict:
            scores = attacked.setdefault(record.source, []) if record.attacked else clean
            scores.append(record.verdict.score)
    return clean, attacked
