"""MALADE: relaxation to the data of the image's own class (Srinivasan et al. 2019, eq. 10).

The score is that of a supervised denoising autoencoder (metastable.networks.autoencoder), which estimates
the gradient of log p(x | y), averaged over the labels y that x may have.  There is no accept or reject
step ("MALA-approx", footnote 2), and no clipping: x + alpha E[grad log p(x | y)] + kick z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metastable.dynamics.base import Dynamics, Kind, Network, Row, real
from metastable.dynamics.drift import Drift


@dataclass(frozen=True, kw_only=True)
class Malade(Dynamics):
    """N steps along the autoencoder's score, with noise in each.

    Attributes:
        network: that gives the score.
        steps: N.
        alpha: the step size, in squared [0, 1] units (eq. 10).
        kick: standard deviation of the noise, the paper's delta.
    """

    network: Network = "score"
    steps: int = 0
    alpha: float = 0.01
    kick: float = 0.0
    name: ClassVar[str] = "malade"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("alpha", real(self.alpha) and 0 < self.alpha <= 10, "in (0, 10]")
        self.require("kick", real(self.kick) and 0 <= self.kick <= 1, "in [0, 1]")

    @property
    def kind(self) -> Kind:
        return Drift(self.network)

    def row(self, flagged: bool) -> Row:
        return (self.alpha, self.kick)
