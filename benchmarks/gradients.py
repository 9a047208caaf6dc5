"""Which gradient an attack should pay for: direction and cost of exact, held and bfloat16 ones.

The cosine is to float32's exact gradient of the same chains.  `repeat` is the cosine of a gradient to itself
on other noise: where it is far below 1, the noise of the chains hides more than rounding does.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metastable import datasets
from metastable.attacks.ascent import Misclassify, autograd_slope
from metastable.attacks.target import Eot, Gradient
from metastable.attacks.white_box import attackable, white_box
from metastable.bundle import Bundle

WAYS: tuple[tuple[Gradient, bool], ...] = (("exact", False), ("held", False), ("exact", True), ("held", True))


def measure(
    bundle: Bundle, some: datasets.ImageSet, setting: str, samples: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each gradient and precision: cosines (means over images) and median time as a ratio.

    `time` is over that of the exact gradient in float32, in rounds that run them one after another.
    """
    images = datasets.to_float(some.images)
    box = white_box(attackable(bundle, images), setting)
    rows, seconds, first = [], {way: list[float]() for way in WAYS}, torch.empty(0)
    for turn in range(rounds):
        for way in WAYS:
            gradient, bf16 = way
            target = Eot(box, samples=samples, gradient=gradient, seed=1, mirror=True, bf16=bf16)
            started = time.perf_counter()
            _, slope = autograd_slope(target, images, some.labels, Misclassify())
            seconds[way].append(time.perf_counter() - started)
            if turn:
                continue
            first = slope if way == WAYS[0] else first
            other = dataclasses.replace(target, seed=2)
            _, again = autograd_slope(other, images, some.labels, Misclassify())
            rows.append(
                {
                    "gradient": gradient,
                    "precision": "bf16" if bf16 else "f32",
                    "cosine": round(_cosine(slope, first), 4),
                    "repeat": round(_cosine(slope, again), 4),
                }
            )
    base = seconds[WAYS[0]]
    for row, way in zip(rows, WAYS, strict=True):
        ratios = [mine / its for mine, its in zip(seconds[way], base, strict=True)]
        row["time"] = round(statistics.median(ratios), 3)
    return rows


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(1), b.flatten(1)).mean())
