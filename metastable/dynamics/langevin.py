"""Langevin dynamics of an energy-based model (Hill, Mitchell and Zhu 2021, eq. 3 and 13).

The paper's tau = 0.01 is in the units of [-1, 1]; states here are in [0, 1], where the same step
has tau = 0.005.  Mitchell's short-run purification (2020, section 3.1) is the same dynamics for
K = 15 steps on an energy that was not trained to convergence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metastable.dynamics import ScoreFunction
from metastable.dynamics.base import Dynamics, Kind, Network, Row, real
from metastable.dynamics.drift import Drift, drift, drift_step


def langevin_step(
    x: Tensor, score: Tensor, tau: float | Tensor, noise: Tensor, eta: float | Tensor = 1.0
) -> Tensor:
    """x + (tau^2 / 2) grad log p(x) + eta tau z; x, score and noise z are [B, C, H, W], tau and eta fit.

    eta = 1 is eq. 3, whose steady state is p; another eta (eq. 13) has the temperature eta^2.
    """
    return drift_step(x, score, 0.5 * tau**2, eta * tau, noise)


def langevin(
    x: Tensor,
    score: ScoreFunction,
    *,
    tau: float,
    steps: int,
    noise: Callable[[int], Tensor],
    eta: float = 1.0,
) -> Tensor:
    """`steps` Langevin steps from x, without clipping; noise(t) gives step t's normals."""
    return drift(x, score, share=0.5 * tau**2, strength=eta * tau, steps=steps, noise=noise)


@dataclass(frozen=True, kw_only=True)
class Langevin(Dynamics):
    """K steps along the score of an energy, with noise in each.

    Attributes:
        network: that gives the score.
        steps: K.
        tau: the step; Hill's 0.01 in [-1, 1] is 0.005 here.
        eta: factor of the noise (eq. 13); 1 samples the energy's density.
        denoise: standard deviation of the noise that the last of the K steps takes off, which is then
            x + denoise^2 grad log p(x), Tweedie's formula (Vincent 2011): chains of the density of noisy
            images end in such images, and few classifiers know those.  0: the last step is like the others.
    """

    network: Network = "score"
    steps: int = 0
    tau: float = 0.005
    eta: float = 1.0
    denoise: float = 0.0
    name: ClassVar[str] = "langevin"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("tau", real(self.tau) and 0 < self.tau <= 1, "in (0, 1]")
        self.require("eta", real(self.eta) and 0 <= self.eta <= 100, "in [0, 100]")
        self.require("denoise", real(self.denoise) and 0 <= self.denoise <= 1, "in [0, 1]")

    @property
    def kind(self) -> Kind:
        return Drift(self.network)

    def row(self, flagged: bool) -> Row:
        return (0.5 * self.tau**2, self.eta * self.tau)

    def last(self, flagged: bool) -> Row | None:
        return (self.denoise**2, 0.0) if self.denoise else None
