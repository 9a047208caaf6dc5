"""What a dynamics is: the parameters of a setting, and the step that its chains make in a batch.

A dynamics is one file of this package with two classes.  A `Dynamics` holds what a settings file says, and
checks it.  A `Kind` is what chains must share to be advanced together, and has their step; chains of several
dynamics may share one.  `metastable.dynamics.table` lists them by name, and nothing else has to know.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from metastable.dynamics import ScoreFunction
from metastable.errors import SettingsError

Normal = Callable[[int], Tensor]
"""The number of a draw within a step, from 0 -> standard normal noise [B, C, H, W]."""
Row = tuple[float, ...]
"""The parameters of one chain."""
Network = Literal["score", "energy", "short_run", "autoencoder", "purifier"]
NETWORKS: tuple[str, ...] = get_args(Network)
"""The purifying networks that a bundle may hold: a score network, an energy by maximum likelihood or
score matching, an energy that is not convergent (Mitchell 2020), MALADE's autoencoder, and a denoiser that
was trained through the classifier (metastable.training.harden), beside which `score` stays as it was."""
_LARGEST = 10**9  # of any number in a settings file


@dataclass(frozen=True)
class Adaptation:
    """How a step finds its size where that depends on the state.

    Attributes:
        ahead: how far it looks ahead, in the norm of an image; None looks as far as was published.  Scores of
            fewer bits than float32 need it (metastable.dynamics.adp).
        hold: take the size for a constant where autograd is on (metastable.attacks).
    """

    ahead: float | None = None
    hold: bool = False


PUBLISHED = Adaptation()


@dataclass(frozen=True)
class Kind(ABC):
    """What chains must share to be advanced in one batch, and their step.

    Attributes:
        network: name of the bundle's network that gives the score; empty where none does.
        name: for messages and file names.
        probe: parameters of a chain that goes nowhere, to measure a step with.
        draws: normals that a step takes; those of step t have the numbers t * draws and up.
        differentiates: whether a step needs the derivative of the score, which exported graphs do not have.
        clips: whether a step ends in [0, 1].
        stops: whether a chain may stop before its last step.
        captures: whether a GPU can record its step in a graph.
    """

    network: str
    name: ClassVar[str]
    probe: ClassVar[Row]
    draws: ClassVar[int] = 1
    differentiates: ClassVar[bool] = False
    clips: ClassVar[bool] = False
    stops: ClassVar[bool] = False
    captures: ClassVar[bool] = True

    @abstractmethod
    def step(
        self,
        x: Tensor,
        score: ScoreFunction,
        columns: Sequence[Tensor],
        normal: Normal,
        adapt: Adaptation = PUBLISHED,
    ) -> tuple[Tensor, Tensor]:
        """The states x [B, C, H, W] after one step, and 1.0 for each chain that moved, else 0.0: [B].

        A chain that did not move has stopped for good; only kinds that say `stops` have such.

        Args:
            columns: the chains' parameters, each a tensor [B].
            adapt: for kinds whose step sizes adapt.
        """

    def factors(self, columns: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Of score and noise, each [B], where a step is x + share * score + strength * z; None elsewhere.

        A GPU then makes the step in one kernel.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Dynamics(ABC):
    """The parameters of one dynamics, by the names that a settings file gives them; lengths in [0, 1] units.

    A subclass is a frozen dataclass whose fields are exactly those that it reads.  It raises SettingsError
    for values that it cannot have.

    Attributes:
        name: in settings files.
        purifies: whether anything is done to the image.
        random: whether chains differ; where they do not, one says all.
        differentiable: whether the purified image has a gradient with respect to the image.
        adapts: whether step sizes depend on the state.
    """

    name: ClassVar[str]
    purifies: ClassVar[bool] = True
    random: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    adapts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check `steps` and `network`; subclasses go on."""
        if self.purifies:
            self.require("steps", whole(self.steps) and self.steps >= 1, "a whole number from 1")
        if self.network:
            self.require("network", self.network in NETWORKS, f"one of {NETWORKS}")

    @property
    @abstractmethod
    def steps(self) -> int:
        """T, K or N: updates of each chain."""

    @property
    def network(self) -> str:
        """The network of the bundle that gives the score; empty where none does."""
        return ""

    @property
    @abstractmethod
    def kind(self) -> Kind | None:
        """Of the chains; None where there is nothing to purify."""

    @abstractmethod
    def row(self, flagged: bool) -> Row:
        """The parameters of a chain of an image with this anomaly flag."""

    def last(self, flagged: bool) -> Row | None:
        """The parameters of a chain's last step, where they are others; None where they are not."""
        return None

    def injects(self, flagged: bool) -> float | None:
        """Standard deviation of the noise that is added before the first step; None adds none."""
        return None

    @property
    def asks_the_flag(self) -> bool:
        """Whether the noise depends on the image's anomaly flag."""
        return False

    @property
    def smoothing(self) -> float | None:
        """The Gaussian noise after which nothing else is random, as randomised smoothing needs it."""
        return None

    def require(self, field: str, good: bool, wanted: str) -> None:
        """SettingsError unless `good`; `wanted` says what the field must be."""
        if not good:
            raise SettingsError(f"{field} must be {wanted}, not {shown(getattr(self, field))}")


def no_noise(draw: int) -> Tensor:
    """The noise of a step that draws none."""
    raise AssertionError("a step asks for noise that its kind says it does not draw")


def columns(rows: Sequence[Row], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Parameters of chains, a tuple each, as one tensor [B] a parameter."""
    return list(torch.tensor(rows, dtype=dtype).unbind(1))


def wide(column: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return column.view(-1, 1, 1, 1)


def whole(value: object) -> bool:
    """Whether it is a whole number of a size that a settings file may have."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def real(value: object) -> bool:
    """Whether it is a number of a size that a settings file may have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def shown(value: object) -> str:
    """A value for an error message: short, whatever it is (a huge whole number has no repr at all)."""
    return "a huge number" if isinstance(value, int) and abs(value) > _LARGEST else reprlib.repr(value)
