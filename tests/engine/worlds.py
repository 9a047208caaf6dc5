"""A runner with known answers on a clock that only it moves, for tests of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from metastable import noise
from metastable.dynamics.adp import Ascent
from metastable.dynamics.base import Kind
from metastable.dynamics.drift import Drift
from metastable.engine.admission import Admission, Permit
from metastable.engine.costs import CLASSIFY, Costs
from metastable.engine.engine import Engine, EngineLimits
from metastable.engine.job import Job
from metastable.engine.runners import Abilities, Batch
from metastable.settings import Setting

SHAPE = (1, 2, 2)
KINDS = (Drift("energy"), Ascent("score"))
STEP, LOOK = 1e-3, 2e-3  # seconds of a chain-step and of a classification

SHORT = Setting.of("short", "langevin", network="energy", chains=4, steps=2, tau=0.1)
LONG = Setting.of("long", "langevin", network="energy", chains=60, steps=20, tau=0.1)
ADP = Setting.of("adp", "adp", chains=6, steps=3, sigma=0.3, step_bounds=(0.1, 1.0), stop=0.05)
NONE = Setting.of("none", "none")
DENOISED = Setting.of("denoised", "langevin", network="energy", chains=5, steps=4, tau=0.1, denoise=0.3)
SETTINGS = (SHORT, LONG, ADP, NONE, DENOISED)


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Walk:
    """Langevin steps without a drift, ADP updates to one half; logits are (mean, 0) of the image.

    Attributes:
        batches: (kind, size, steps) of every call.
        break_on: raise in a batch for which it says so.
        poison: turn these rows of a batch into NaN.
    """

    name = "walk"
    abilities = Abilities(exact=True)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.batches: list[tuple[Kind, int, int]] = []
        self.break_on: Callable[[Batch], bool] = lambda batch: False
        self.poison: Callable[[Batch], list[int]] = lambda batch: []

    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        size = len(batch.keys)
        self.batches.append((kind, size, steps))
        self.clock.now += STEP * size * steps
        if self.break_on(batch):
            raise RuntimeError("the device is gone")
        x = batch.x.clone()
        moved = torch.full((size,), steps)
        if isinstance(kind, Drift):
            tau = torch.tensor([row[0] for row in batch.parameters]).view(-1, 1, 1, 1)
            for t in range(steps):
                x += tau * noise.normal(
                    batch.keys, [first + t for first in batch.next_steps], tuple(x.shape[1:])
                )
        else:
            x = 0.5 + (x - 0.5) * 0.5**steps
            moved[batch.x.flatten(1).mean(1) > 0.6] = 0  # some chains have stopped already
        x[self.poison(batch)] = torch.nan
        return x, moved

    def score(self, network: str, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def classify(self, x: Tensor) -> Tensor:
        self.clock.now += LOOK * len(x)
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, torch.zeros_like(mean)], dim=1)


def costs() -> Costs:
    """The cost curve of a Walk, which is true."""
    sizes = (1, 2, 4, 8, 16)
    curves: dict[Kind | str, dict[int, float]] = {kind: {n: STEP * n for n in sizes} for kind in KINDS}
    curves[CLASSIFY] = {n: LOOK * n for n in sizes}
    return Costs(curves)


def world(limits: EngineLimits | None = None) -> tuple[Engine, Walk, Clock]:
    """An engine on a Walk."""
    clock = Clock()
    runner = Walk(clock)
    return Engine(runner, costs(), SHAPE, clock, limits), runner, clock


def permit(setting: Setting) -> Permit:
    """A permit of nobody else's admission."""
    return Admission(costs(), backlog=math.inf, jobs=1).admit(setting)


def job(id: str, setting: Setting = SHORT, *, seed: int = 0, value: float = 1.0, **more: object) -> Job:
    """A job whose image has one value everywhere."""
    return Job(id, torch.full(SHAPE, value), setting, seed, **more)  # type: ignore[arg-type]


def run_out(engine: Engine) -> None:
    """Advance until there is nothing left to do."""
    while engine.advance():
        pass
