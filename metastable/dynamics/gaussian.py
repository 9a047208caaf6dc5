"""Gaussian noise alone, clipped to [0, 1]: randomised smoothing without a purifier (Cohen et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metastable.dynamics import ScoreFunction
from metastable.dynamics.base import PUBLISHED, Adaptation, Dynamics, Kind, Normal, Row, real, wide


def inject(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """clip(x + sigma z, 0, 1), with one sigma a chain: [B].

    ADP clips so in the text of its experiments; Algorithm 1 and eq. 12 have no clip.
    """
    return (x + wide(sigma) * noise).clamp(0, 1)


@dataclass(frozen=True)
class Noisy(Kind):
    """Chains whose parameter is sigma."""

    network: str = ""
    name: ClassVar[str] = "noise"
    probe: ClassVar[Row] = (1e-3,)
    clips: ClassVar[bool] = True

    def step(
        self,
        x: Tensor,
        score: ScoreFunction,
        columns: Sequence[Tensor],
        normal: Normal,
        adapt: Adaptation = PUBLISHED,
    ) -> tuple[Tensor, Tensor]:
        return inject(x, columns[0], normal(0)), torch.ones_like(columns[0])

    def factors(self, columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(columns[0]), columns[0]


@dataclass(frozen=True, kw_only=True)
class TwoLevels(Dynamics):
    """Dynamics that add Gaussian noise, less of it to images that the anomaly flag passes.

    Attributes:
        sigma: standard deviation of the noise.
        sigma_unflagged: that for images that the flag passes (ADP, Appendix F: 0.2 sigma); None has `sigma`
            for all.
    """

    sigma: float = 0.0
    sigma_unflagged: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        low = self.sigma_unflagged
        self.require("sigma", real(self.sigma) and 0 <= self.sigma <= 1, "in [0, 1]")
        self.require("sigma_unflagged", low is None or (real(low) and 0 <= low <= 1), "in [0, 1]")

    def level(self, flagged: bool) -> float:
        """The noise of an image with this flag."""
        return self.sigma if flagged or self.sigma_unflagged is None else self.sigma_unflagged

    @property
    def asks_the_flag(self) -> bool:
        return self.sigma_unflagged is not None

    @property
    def smoothing(self) -> float | None:
        return self.sigma


@dataclass(frozen=True, kw_only=True)
class Gaussian(TwoLevels):
    """Noise alone.

    Attributes:
        steps: 1, the noise.
    """

    steps: int = 0
    name: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("steps", self.steps == 1, "1, where there is only noise")

    @property
    def kind(self) -> Kind:
        return Noisy()

    def row(self, flagged: bool) -> Row:
        return (self.level(flagged),)
