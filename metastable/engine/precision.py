"""Bits of a runner's convolutions, and what fewer of them mean for the steps."""

from __future__ import annotations

from typing import Literal

AHEAD = 0.3
"""How far ahead an adaptive step looks, in the norm of an image, below float32."""

Precision = Literal["f32", "bf16", "int8"]


def ahead_of(precision: Precision) -> float | None:
    """The `ahead` of `metastable.dynamics.base.Kind.step` where convolutions are of this precision."""
    return None if precision == "f32" else AHEAD
