"""Numbers and pictures that show whether an energy model's training is healthy.

A stable run has an energy difference that is small beside its own spread and often changes its
sign, a steady gradient strength, and long-run samples that look like images (Hill 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

Record = list[tuple[float, float]]
"""Of every update, d = mean U(data) - mean U(samples), and the mean |grad U| along its chains.

Gradients are with respect to images in [0, 1].
"""


def signals(window: Record, states: Tensor) -> dict[str, float]:
    """A line of the log: means over `window`, and the range of the chains in `states`."""
    low, high = states.aminmax()
    return {
        "d": fmean(d for d, _ in window),
        "d_std": pstdev(d for d, _ in window),
        "gradient_strength": fmean(strength for _, strength in window),
        "pixel_min": low.item(),
        "pixel_max": high.item(),
        "not_finite": 1 - states.isfinite().float().mean().item(),
    }


def summary(record: Record, switch: int) -> dict[str, float]:
    """d and gradient strength over the last fifth of the updates, and the length of both phases."""
    last = record[-math.ceil(len(record) / 5) :]
    adam = min(switch, len(record))
    return {
        "d_mean": fmean(d for d, _ in last),
        "d_std": pstdev(d for d, _ in last),
        "d_sign_changes": sum(a * b < 0 for (a, _), (b, _) in pairwise(last)),
        "d_updates": len(last),
        "gradient_strength": fmean(strength for _, strength in last),
        "adam_updates": adam,
        "sgd_updates": len(record) - adam,
    }


def tile(images: Tensor, columns: int = 8) -> np.ndarray:
    """Images [N, C, H, W] in [0, 1] as one picture [rows H, columns W, 3] in [0, 1], white where empty.

    Values outside [0, 1] are clipped: Langevin states are not clamped, pictures have to be.
    """
    n, _, h, w = images.shape
    rows = math.ceil(n / columns)
    cells = torch.ones(rows * columns, 3, h, w)
    cells[:n] = images.float().cpu().clamp(0, 1)  # one channel spreads over three
    picture = cells.view(rows, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
    return picture.numpy()


def draw_samples(path: Path, panels: Mapping[str, Tensor]) -> None:
    """Write a PNG with one grid of images a panel; `panels` maps a title to images [N, C, H, W]."""
    figure = Figure(figsize=(4.2 * len(panels), 4.6), layout="constrained")
    for i, (title, images) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        axes.imshow(tile(images), interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def draw_record(path: Path, record: Record, switch: int) -> None:
    """Write a PNG of both values of the record over updates; a dashed line where SGD took over."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    updates = range(1, len(record) + 1)
    upper = figure.add_subplot(2, 1, 1)
    # d spans decades at the start and hovers around zero afterwards: a scale linear near zero.
    upper.set_yscale("symlog", linthresh=10)
    upper.plot(updates, [d for d, _ in record], linewidth=0.7)
    upper.axhline(0, color="black", linewidth=0.6)
    upper.set_ylabel("mean U(data) - mean U(samples)")
    lower = figure.add_subplot(2, 1, 2, sharex=upper)
    lower.plot(updates, [strength for _, strength in record], linewidth=0.7)
    lower.set_ylabel("mean |grad U| along the chains")
    lower.set_xlabel("update")
    if 0 < switch < len(record):
        for axes in (upper, lower):
            axes.axvline(switch + 0.5, color="gray", linestyle="--", linewidth=0.8)
        upper.set_title(f"Adam for {switch} updates, then SGD", fontsize=9)
    figure.savefig(path, dpi=110)
