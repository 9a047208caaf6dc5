"""When requests are due: pure functions of a rate and a seed (the scenarios are MLPerf Inference's).

open loop     `poisson` and `constant`: requests leave on a schedule whatever the server does.
closed loop   `closed`: so many requests under way at any time; `single` is one, MLPerf's SingleStream,
              `offline` is as fast as possible, judged by images a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metastable.errors import MetastableError

Scenario = Literal["poisson", "constant", "closed", "offline", "single"]
SCENARIOS: tuple[str, ...] = get_args(Scenario)
OFFLINE_AT_ONCE = 32  # keeps a worker's batch full and stays below the server's queue of 64
Times = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Load:
    """How requests of one block are offered.

    Attributes:
        rate: requests a second, of an open loop.
        concurrency: requests under way, of `closed`.
        seconds: no request leaves later than this after the block's start.
        timeout: seconds from a request's start to giving it up.

    Raises MetastableError for a value that makes no sense.
    """

    scenario: Scenario = "poisson"
    rate: float = 2.0
    concurrency: int = 4
    seconds: float = 120.0
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise MetastableError(f"there is no scenario {self.scenario!r}: choose from {SCENARIOS}")
        for name in ("rate", "concurrency", "seconds", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise MetastableError(f"{name} must be above 0 and finite, not {getattr(self, name)}")

    @property
    def is_open(self) -> bool:
        return self.scenario in ("poisson", "constant")

    @property
    def at_once(self) -> int:
        """Requests under way in a closed loop."""
        return {"single": 1, "offline": OFFLINE_AT_ONCE}.get(self.scenario, self.concurrency)

    def due(self, n: int, seed: int) -> Times | None:
        """Seconds after the start at which at most n requests should leave; None for a closed loop."""
        if not self.is_open:
            return None
        times = poisson(self.rate, n, seed) if self.scenario == "poisson" else constant(self.rate, n)
        return times[times < self.seconds]


def poisson(rate: float, n: int, seed: int) -> Times:
    """The first n arrivals of a Poisson process of `rate` a second, in seconds."""
    return np.random.default_rng(seed).exponential(1 / rate, n).cumsum()


def constant(rate: float, n: int) -> Times:
    """n arrivals 1 / rate seconds apart, the first at once."""
    return np.arange(n) / rate
