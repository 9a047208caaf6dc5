"""What goes into the engine and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metastable.defense import Defended, as_averaged
from metastable.dynamics.base import Row
from metastable.engine.admission import Permit
from metastable.engine.timeline import Timeline
from metastable.errors import MetastableError
from metastable.settings import Setting
from metastable.stopping import Decision


@dataclass(frozen=True, eq=False)
class Job:
    """One request for a purified answer.

    Attributes:
        id: unique among the jobs that the engine holds.
        image: float32 [C, H, W] in [0, 1].
        seed: of its chains, in [0, 2^128); keep it secret.
        flagged: the anomaly flag of the image; it chooses the noise of `adp` and `noise`.
        deadline: on the engine's clock; None for no deadline.
        timeline: where the engine notes when it did what for it; None for nowhere.
        first: number of its first chain: those before it are another engine's part of the same request.
    """

    id: str
    image: Tensor
    setting: Setting
    seed: int
    flagged: bool = False
    deadline: float | None = None
    timeline: Timeline | None = None
    first: int = 0


@dataclass(frozen=True, eq=False)
class Answer:
    """What the chains of a job say.

    Attributes:
        result: outputs [1, n, classes], purified mean [1, C, H, W] and steps [1, n] of its n chains.
        decision: whether n chains decided the label, and by how much.
        late: the deadline came before a decision; this is the best answer so far.
        capped: all chains of the setting were spent without a decision.
        redrawn: chains that became NaN and were drawn again.
        seconds: `queue` until its first chain started; its share of the time of the batches that it
            was in, as `purify` and `classify`.
    """

    job: Job
    result: Defended
    decision: Decision
    late: bool
    capped: bool
    redrawn: int
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Failure:
    """A job that ends without an answer."""

    job: Job
    error: MetastableError


Outcome = Answer | Failure


class Finished(NamedTuple):
    """What one chain came to: its output [classes], its state [C, H, W], where that is, and its steps.

    The state is None where the sum over the request's chains has it (`ActiveJob.settle`).
    """

    output: Tensor
    state: Tensor | None
    steps: int


class Segment(NamedTuple):
    """What one segment of work was.

    Attributes:
        jobs: that were held when it began.
        chains: in its batch, and `width` how many would have fit.
        redrawn: of them, became NaN and were drawn again.
    """

    jobs: int
    chains: int
    width: int
    redrawn: int


BLOCK = 16  # states that a request keeps before it adds them up: of large images each takes much memory


class ActiveJob:
    """A job on its way through the engine.

    Chains are numbered from 0 in the order in which they start; `goal` of them are wanted so far,
    and the first `judged` of them were not enough to decide.  Its permit counts the machine time that
    it got.
    """

    def __init__(self, job: Job, order: int, arrived: float, permit: Permit, goal: int) -> None:
        self.job, self.order, self.arrived, self.permit, self.goal = job, order, arrived, permit, goal
        dynamics = job.setting.dynamics
        self.kind, self._row, self._last = (
            dynamics.kind,
            dynamics.row(job.flagged),
            dynamics.last(job.flagged),
        )
        self.steps, self.cap = dynamics.steps, job.setting.most_chains
        self.turn = self.steps if self._last is None else self.steps - 1
        self.begun = 0
        self.slots: list[int] = []
        self.finished: dict[int, Finished] = {}
        self._total: Tensor | None = None
        self.judged = 0
        self.redrawn = 0
        self.seconds = {"queue": 0.0, "purify": 0.0, "classify": 0.0}

    def parameters(self, step: int) -> Row:
        """Of a chain that has made so many steps; they change at `turn`, and nowhere else."""
        return self._row if self._last is None or step < self.turn else self._last

    @property
    def wanting(self) -> int:
        """Chains of its rounds so far that have not begun."""
        return self.goal - self.begun

    @property
    def left(self) -> float:
        """Seconds of the machine that it is expected to need still."""
        return self.permit.left

    def charge(self, stage: str, seconds: float) -> None:
        """Note that `stage` spent `seconds` of machine time on it."""
        self.seconds[stage] += seconds
        self.permit.charge(seconds)

    def finish(self, chain: int, end: Finished) -> None:
        """Note what a chain came to."""
        self.finished[chain] = end
        if self.job.setting.delta is None:  # all chains are in the answer, whatever comes
            kept = [number for number, one in self.finished.items() if one.state is not None]
            if len(kept) >= BLOCK:
                self._add_up(kept)

    def settle(self) -> None:
        """All chains that have finished are in any answer from now on: only their states' sum is kept."""
        self._add_up(sorted(self.finished))

    def outputs(self) -> Tensor:
        """What is averaged over chains of all that have finished, by number: [n, classes]."""
        chains = [self.finished[chain].output for chain in sorted(self.finished)]
        return as_averaged(torch.stack(chains), self.job.setting.average)

    def result(self, count: int) -> Defended:
        """The first `count` chains by number, those that are settled among them, as of the reference defense.

        It is on the CPU.
        """
        chains = sorted(self.finished)[:count]
        self._add_up(chains)
        assert self._total is not None
        purified = (self._total / count).float().cpu()
        steps = torch.tensor([[self.finished[chain].steps for chain in chains]])
        return Defended(self.outputs()[None, :count], purified[None], steps, self.job.setting.average)

    def _add_up(self, chains: Sequence[int]) -> None:
        """Put the states of these chains into the sum, in float64: their order then makes no difference."""
        states = [state for chain in chains if (state := self.finished[chain].state) is not None]
        if not states:
            return
        total = torch.stack(states).sum(0, dtype=torch.float64)
        self._total = total if self._total is None else self._total + total
        for chain in chains:
            self.finished[chain] = self.finished[chain]._replace(state=None)
