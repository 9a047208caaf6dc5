"""How many replicas a rate and a latency need, by arithmetic on the cost curve of one.

Two numbers of seconds are computed for every request of a sample, by the engine's own rules for rounds and
batches (`stopping.next_round`, `Costs.width`):

- `alone`: how long it takes on an idle replica.
- `work`: what it takes of a replica whose batches are always full, with chains of others where its own end.

A replica shares its time among those that wait, so a request that would take s seconds alone is taken to need
s times the slowdown, which is the same for all:

- One replica has full batches where two or more requests wait.  Processor sharing (Kleinrock 1967) with these
  two speeds has the slowdown 1 / ((1 - w) (1 - w + a)), a and w being the rate times the means of `alone`
  and `work`.
- Many replicas, of which a router takes the less busy of two, seldom have requests that wait, and seldom full
  batches.  The slowdown is the mean number of requests on a replica over a, which tends to the sum over k of
  a^(2^k - 2) as replicas become many (Mitzenmacher 1996; Vvedenskaya, Dobrushin and Karpelevich 1996).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.scaling_requests import CLASSES, FAR, margins
from benchmarks.scaling_simulation import Fleet
from metastable import stopping
from metastable.engine.costs import CLASSIFY, LOOK, Costs
from metastable.errors import MetastableError
from metastable.settings import Setting

SAMPLE = 3000
HIGHEST = 0.95
"""Share of its time, at the seconds alone, that is planned for a replica at most: latency is a matter of the
moment above it."""


@dataclass(frozen=True)
class Capacity:
    """What a sample of N requests needs of one replica, in seconds.

    Attributes:
        alone, work: see the module, float64 [N].
        settings: the setting of each, [N].
        chains: that each begins, int64 [N].
    """

    alone: NDArray[np.float64]
    work: NDArray[np.float64]
    settings: list[str]
    chains: NDArray[np.int64]

    @property
    def rate(self) -> float:
        """Requests a second that one replica answers at most, its batches full."""
        return 1 / float(self.work.mean())

    def latency(self, quantile: float, rate: float, replicas: int) -> float:
        """Seconds within which this share of requests is answered, at so many a second; inf at too many."""
        lone, full = (rate / replicas * float(seconds.mean()) for seconds in (self.alone, self.work))
        return slowdown(lone, full, replicas) * float(np.quantile(self.alone, quantile))

    def replicas(self, rate: float, p99: float) -> int:
        """The least number that answers so many requests a second, 99 of 100 within `p99` seconds.

        Raises MetastableError where no number does: a request alone takes longer.
        """
        if (floor := self.latency(0.99, 0.0, 1)) >= p99:
            raise MetastableError(
                f"one of 100 requests takes {floor:.2f} s with nobody else there: no number of replicas "
                f"answers 99 of 100 within {p99:g} s, take fewer of the dear settings"
            )
        count = max(math.ceil(rate * float(self.alone.mean()) / HIGHEST), 1)
        while self.latency(0.99, rate, count) > p99:
            count += 1
        return count


def slowdown(lone: float, full: float, replicas: int) -> float:
    """Times the seconds alone that a request takes; inf where work comes faster than it is done.

    Args:
        lone, full: share of its time that a replica works, if requests take their seconds alone, or work.
    """
    if replicas == 1:
        return math.inf if full >= 1 else 1 / ((1 - full) * (1 - full + lone))
    return math.inf if lone >= 1 else sum(lone ** (2**k - 2) for k in range(1, 64))


def capacity(fleet: Fleet, seed: int, count: int = SAMPLE) -> Capacity:
    """Of one replica of a fleet, on a sample of its mix."""
    rng = np.random.default_rng(seed)
    settings, shares = zip(*fleet.mix.settings, strict=True)
    chosen = [settings[i] for i in rng.choice(len(settings), size=count, p=shares)]
    curve = fleet.recorded.costs(settings)
    found = [
        needs(setting, said, curve, fleet.limits.segment)
        for setting, said in zip(chosen, margins(fleet.mix, count, rng), strict=True)
    ]
    alone, work, chains = zip(*found, strict=True)
    names = [setting.name for setting in chosen]
    return Capacity(np.array(alone), np.array(work), names, np.array(chains))


def needs(
    setting: Setting, said: NDArray[np.float32], curve: Costs, segment: float
) -> tuple[float, float, int]:
    """Seconds alone, seconds of work, and chains begun, of a request with margins [most chains].

    Args:
        segment: seconds that a batch and its classification are to fit into.
    """
    look, kind = curve.seconds(LOOK, 1), setting.dynamics.kind
    width = curve.width(CLASSIFY if kind is None else kind, segment)

    def seconds(size: int) -> float:
        """Of all steps of a batch, and its classification."""
        steps = 0.0 if kind is None else setting.steps * curve.seconds(kind, size)
        return steps + curve.seconds(CLASSIFY, size)

    alone, taken, needed = look, 0, stopping.UNSEEN
    rule = stopping.Stopping(delta=setting.delta or stopping.Stopping.delta)
    while taken < setting.most_chains:
        size = setting.most_chains - taken
        if setting.delta is not None and kind is not None:
            size = stopping.next_round(needed, taken, setting.most_chains, seconds)
        whole, rest = divmod(size, width)
        alone += whole * seconds(width) + (seconds(rest) if rest else 0.0)
        before, taken = taken, taken + size
        if setting.delta is None:
            break
        needed = _judged(said[:taken], before, rule)
        if not needed:
            break
    return alone, look + taken * seconds(width) / width, taken


def _judged(said: NDArray[np.float32], before: int, rule: stopping.Stopping) -> tuple[int, ...]:
    """Likely totals of chains, as the engine judges a round; empty once the label is settled.

    Rivals but the runner-up are far, so one margin says at which of the numbers since `before` it is.
    """
    numbers, margins = np.arange(1, len(said) + 1), said.astype(np.float64)
    means = margins.cumsum() / numbers
    spreads = np.sqrt(np.maximum((margins**2).cumsum() - numbers * means**2, 0) / np.maximum(numbers - 1, 1))
    level = rule.delta / (CLASSES - 1)
    for n in range(max(before + 1, rule.least), len(said) + 1):
        if abs(means[n - 1]) > stopping.critical(n, level) / math.sqrt(n) * spreads[n - 1]:
            return ()
    outputs = torch.full((len(said), CLASSES), FAR)
    outputs[:, 0], outputs[:, 1] = torch.from_numpy(said), 0.0
    return stopping.decide(outputs, rule).needed
