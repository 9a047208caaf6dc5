"""What goes into the engine and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metastable.defense import Defended, as_averaged
from metastable.engine.admission import Permit
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
    """

    id: str
    image: Tensor
    setting: Setting
    seed: int
    flagged: bool = False
    deadline: float | None = None


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
    """What one chain came to: its output [classes], its state [C, H, W], where that is, and its steps."""

    output: Tensor
    state: Tensor
    steps: int


class ActiveJob:
    """A job on its way through the engine.

    Chains are numbered from 0 in the order in which they start; `goal` of them are wanted so far,
    and the first `judged` of them were not enough to decide.  Its permit counts the machine time that
    it got.
    """

    def __init__(self, job: Job, order: int, arrived: float, permit: Permit, goal: int) -> None:
        self.job, self.order, self.arrived, self.permit, self.goal = job, order, arrived, permit, goal
        dynamics = job.setting.dynamics
        self.kind, self.parameters = dynamics.kind, dynamics.row(job.flagged)
        self.steps, self.cap = dynamics.steps, job.setting.most_chains
        self.begun = 0
        self.slots: list[int] = []
        self.finished: dict[int, Finished] = {}
        self.judged = 0
        self.redrawn = 0
        self.seconds = {"queue": 0.0, "purify": 0.0, "classify": 0.0}

    @property
    def wanting(self) -> int:
        """Chains of its rounds so far that have not begun."""
        return self.goal - self.begun

    @property
    def served(self) -> float:
        """Seconds of the machine that it got."""
        return self.permit.served

    def charge(self, stage: str, seconds: float) -> None:
        """Note that `stage` spent `seconds` of machine time on it."""
        self.seconds[stage] += seconds
        self.permit.charge(seconds)

    def outputs(self) -> Tensor:
        """What is averaged over chains of all that have finished, by number: [n, classes]."""
        chains = [self.finished[chain].output for chain in sorted(self.finished)]
        return as_averaged(torch.stack(chains), self.job.setting.average)

    def result(self, count: int) -> Defended:
        """The first `count` chains by number, as of the reference defense, on the CPU."""
        chains = [self.finished[chain] for chain in sorted(self.finished)[:count]]
        purified = torch.stack([one.state for one in chains]).mean(0).cpu()
        steps = torch.tensor([[one.steps for one in chains]])
        return Defended(self.outputs()[None, :count], purified[None], steps, self.job.setting.average)
