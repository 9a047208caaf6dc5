"""Images, keys and a measure of error that the tests of runners share; needs no optional runtime."""

from __future__ import annotations

import torch
from torch import Tensor

from metastable import noise
from metastable.dynamics.drift import Drift
from metastable.dynamics.langevin import Langevin

LANGEVIN = Drift("energy")
SIZE = 11
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def images(size: int = SIZE) -> Tensor:
    return torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def row_of(tau: float) -> tuple[float, ...]:
    """The parameters of a Langevin chain."""
    return Langevin(network="energy", steps=1, tau=tau).row(flagged=False)


def keys(size: int = SIZE) -> list[noise.ChainKey]:
    return [(7 * i, i % 3) for i in range(size)]


def off(got: Tensor, wanted: Tensor) -> Tensor:
    """Relative L2 error of every row.  Signs near zero flip in float32: take a quantile, not the maximum."""
    return (got - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
