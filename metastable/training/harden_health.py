"""A picture that shows whether a hardening run is healthy."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


def draw(path: Path, log: list[dict[str, float]]) -> None:
    """Write a PNG of a run's log: loss and norm of the gradient, and accuracies, over updates.

    Accuracy on the training's own attacks above robust accuracy on held-out images is overfitting; a
    fall of the second alone is a collapse; dashed lines are where the guard restored weights.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for key, axes, label in (
        ("loss", upper, "loss"),
        ("gradient", upper, "norm of the gradient"),
        ("attacked", lower, "training images, own attack"),
        ("natural", lower, "held out, natural"),
        ("robust", lower, "held out, PGD"),
    ):
        points = [(line["step"], line[key]) for line in log if key in line]
        if points:
            marker = "o" if key in ("natural", "robust") else ""
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1, marker=marker, markersize=3)
    for line in log:
        if "restored" in line:
            for axes in (upper, lower):
                axes.axvline(line["step"], color="gray", linestyle="--", linewidth=0.8)
    upper.set_yscale("log")
    lower.set(ylim=(0, 1), xlabel="update", ylabel="accuracy")
    for axes in (upper, lower):
        if axes.lines:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
