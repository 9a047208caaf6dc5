"""One replica on a simulated clock: the real engine, and a runner that does no arithmetic.

What a step, a classification or a look takes is read from a recorded cost curve, and the clock moves by it.
A replica does in one turn what the server's engine thread does in one (`metastable.engine.driver`, and
`_Looks` of the door's engine): look at the images that came, take the jobs that were looked at before, and
advance one segment.

What it leaves out: the door, the network, the engine's own bookkeeping, and that a machine is not always as
fast.  One thing comes early: the work of a turn is known to admission from the turn's beginning, so a request
may be admitted one segment (30 ms) sooner than it would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.scaling_costs import Recorded
from benchmarks.scaling_requests import CLASSES, FAR
from metastable.dynamics.base import Kind
from metastable.engine.admission import Permit
from metastable.engine.costs import CLASSIFY, LOOK, Costs
from metastable.engine.engine import Engine, EngineLimits
from metastable.engine.job import Answer, Job
from metastable.engine.runners import Abilities, Batch
from metastable.settings import Setting

SHAPE = (1, 1, 1)
"""Of an image, whose one number is the margin of its chain.  As many chains fit as of a CIFAR-10 image."""
LOOKS = 32  # images of one look


class Clock:
    """Seconds that only what is simulated moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class RecordedRunner:
    """Chains end at their margins, and take what was recorded.

    Args:
        costs: the recorded curve, which nobody changes.

    Attributes:
        margins: of the chains of every request under way, by its seed.
    """

    name = "recorded"
    abilities = Abilities(exact=True)

    def __init__(self, clock: Clock, costs: Costs) -> None:
        self._clock, self._costs = clock, costs
        self.margins: dict[int, NDArray[np.float32]] = {}

    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        size = len(batch.keys)
        self._clock.now += steps * self._costs.seconds(kind, size)
        said = [float(self.margins[seed][chain]) for seed, chain in batch.keys]
        return torch.tensor(said).view(size, *SHAPE), torch.full((size,), steps)

    def score(self, network: str, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def classify(self, x: Tensor) -> Tensor:
        self._clock.now += self._costs.seconds(CLASSIFY, len(x))
        outputs = torch.full((len(x), CLASSES), FAR)
        outputs[:, 0], outputs[:, 1] = x.flatten(), 0.0
        return outputs


class Ended(NamedTuple):
    """A request's number, when it ended, and its chains; None where it failed."""

    number: int
    at: float
    chains: int | None


class Replica:
    """See the module.

    Args:
        recorded: what its machine takes.
        settings: that may be asked.

    Attributes:
        ongoing: requests that it was given and has not answered, as a router counts them.
        ready: when the turn that is running ends; None while there is none.
        busy: spells of work, (from, to) in seconds.
    """

    def __init__(self, recorded: Recorded, settings: Sequence[Setting], limits: EngineLimits) -> None:
        self._clock = Clock()
        self._costs = recorded.costs(settings)
        self._runner = RecordedRunner(self._clock, self._costs)
        # A curve of its own: an engine's follows what it sees.
        self._engine = Engine(self._runner, recorded.costs(settings), SHAPE, self._clock, limits)
        self._came: list[tuple[int, Permit]] = []
        self._looked: list[tuple[int, Permit]] = []
        self.ongoing = 0
        self.ready: float | None = None
        self.busy: list[tuple[float, float]] = []

    @property
    def backlog(self) -> float:
        """Seconds of work that wait."""
        return self._engine.backlog

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._engine.held or self._came or self._looked)

    def admit(self, number: int, setting: Setting, margins: NDArray[np.float32]) -> None:
        """Give it a request; raises Overloaded as the engine does."""
        permit = self._engine.admit(setting)
        self._came.append((number, permit))
        self._runner.margins[number] = margins
        self.ongoing += 1

    def turn(self, now: float) -> list[Ended]:
        """One turn of the engine's thread from `now` on, and what has ended by its end, `ready`.

        Whoever is told must not act on it before that: `ongoing` is theirs to count down.
        """
        self._clock.now = now
        jobs, self._looked = self._looked, []
        while self._came:
            self._look()
        for number, permit in jobs:
            self._engine.submit(Job(str(number), torch.zeros(SHAPE), permit.setting, seed=number), permit)
        self._engine.advance()
        self.ready = self._clock.now
        self.busy.append((now, self.ready))
        return [self._ended(one.job.seed, one) for one in self._engine.collect()]

    def _look(self) -> None:
        part, self._came = self._came[:LOOKS], self._came[LOOKS:]
        seconds = self._costs.seconds(LOOK, len(part))
        self._clock.now += seconds
        self._engine.looked(len(part), seconds)
        for _, permit in part:
            permit.charge(seconds / len(part))
        self._looked += part

    def _ended(self, number: int, outcome: object) -> Ended:
        del self._runner.margins[number]
        chains = int(outcome.result.outputs.shape[1]) if isinstance(outcome, Answer) else None
        return Ended(number, self._clock.now, chains)
