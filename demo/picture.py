"""The demonstration's picture: what was sent, what was added, what the chains made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from metastable.defense import Defended

SHOWN = 12  # classes, those with the largest outputs


def draw(
    clean: Tensor, attacked: Tensor, result: Defended, names: list[str], classes: list[str], path: Path
) -> None:
    """One row an image of `result`: input, perturbation x 10, purified mean, mean outputs of SHOWN classes.

    Error bars are two standard errors over chains (none with one chain).
    """
    rows, chains = result.outputs.shape[:2]
    figure = Figure(figsize=(11, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False, width_ratios=(1, 1, 1, 2))
    means = result.mean.numpy()
    errors = np.zeros_like(means)
    if chains > 1:
        errors = 2 * result.outputs.std(dim=1).numpy() / chains**0.5
    for row in range(rows):
        noise = 0.5 + 10 * (attacked[row] - clean[row])
        for column, image in enumerate((attacked[row], noise, result.purified[row])):
            axes[row, column].imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
            axes[row, column].axis("off")
        axes[row, 0].set_title(f"attacked {names[row]}", fontsize=9)
        axes[row, 1].set_title("perturbation x 10", fontsize=9)
        axes[row, 2].set_title(f"mean of {chains} chains", fontsize=9)
        label = int(result.labels[row])
        shown = np.sort(np.argsort(-means[row])[:SHOWN])
        colors = ["#228833" if classes[c] == names[row] else "#bbbbbb" for c in shown]
        axes[row, 3].bar(
            range(len(shown)), means[row, shown], yerr=errors[row, shown], color=colors, capsize=2
        )
        axes[row, 3].set_xticks(range(len(shown)), [classes[c] for c in shown], rotation=60, fontsize=7)
        axes[row, 3].set_title(f"mean {result.average}: {classes[label]}", fontsize=9)
    figure.savefig(path, dpi=110)
