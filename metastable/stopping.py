"""Deciding early: is the class with the highest mean output settled against every other?

Each chain of a request gives one output per class, and the answer is the argmax of their mean.  The
test asks, after any round of chains, whether that class would still lead after infinitely many.

The test.  For leader l and rival j the chains give paired margins d_i = output_i[l] - output_i[j],
with mean m and standard deviation s.  The t-statistic of n margins against a supposed true margin
mu, t = (m - mu) sqrt(n) / s, has a distribution that depends on nothing unknown.  Its likelihood
ratio, between true effects (margin over standard deviation) spread as a half-normal of variance g and
an effect of zero, is a martingale that starts at 1, so by Ville's inequality it ever exceeds 1/a with
a chance of at most a.  `critical(n, a)` is the t at which it does; m - critical(n, a) s / sqrt(n) is
a lower confidence bound that holds at every n at once.  One may look as often as one likes, stop
when one likes, and choose the rounds by what one has seen.

Source: Wang and Ramdas, *Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
variance* (2024), who after Lai (1976) mix the scale-invariant ratio over normal effects.  The half-normal
makes it one-sided: it doubles that ratio and multiplies it by the posterior chance of a positive effect.

All rivals.  Let b be the class that truly leads.  An answer l other than b needs the bound of the
pair (l, b) to be positive although the true margin is not, and there are only classes - 1 such
pairs, whatever the data made the leader; each is given a = delta / (classes - 1).  So the chance that
a request is ever decided wrongly is at most delta.  Where the truth is a tie it may never be decided,
which is why a request needs a cap on its chains.

Assumptions: chains independent and alike, margins normal.  Logit margins of the shipped networks
nearly are.  Where they are not, small n is what suffers.  Heavy tails do no harm, but a margin that
is mostly small and rarely large, or two modes of which all chains so far fell into one, look surer
than they are, and the promise is broken: benchmarks/stopping_simulation.py shows by how much.  `least`
is what stands against that: a mode that holds a share p of the chains hides with a chance of
(1 - p)^least.  Nothing here says whether the leader is the right class.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.optimize import brentq
from scipy.special import stdtr
from torch import Tensor

EFFECT_VARIANCE = 10.0
"""g, the variance of the half-normal over true effects.  Any value is valid; from 3 to 30 the mean number
of chains on recorded CIFAR-10 logits differs by 4 %, and less decides later where effects are large."""
FORECAST_LIMIT = 4096
"""Chains beyond which a forecast does not look."""
UNSEEN: tuple[int, ...] = (6, 6, 7, 14, 150)
"""Equally likely totals of chains before a request's first round: the 10, 30, 50, 70 and 90 % points of
those used on recorded CIFAR-10 logits, as many attacked images as natural ones, at most 150 each."""
_DECILES = (1.2816, 0.5244, 0.0, -0.5244, -1.2816)  # of a standard normal: 90, 70, 50, 30, 10 %
_SLACK = 1.01


@dataclass(frozen=True)
class Stopping:
    """When a request may be answered.

    Attributes:
        delta: the greatest chance, per request, that the label of infinitely many chains is another.
        least: chains that every request is given, at least 2; see the assumptions above.
    """

    delta: float = 0.01
    least: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be between 0 and 1, not {self.delta!r}")
        if self.least < 2:
            raise ValueError(f"least must be 2 or more, not {self.least!r}: one chain shows no spread")


@dataclass(frozen=True)
class Decision:
    """What the chains of one request say so far.  Margins are in the units of the outputs.

    Attributes:
        label: the class with the highest mean output; of equals, the first.
        runner_up: the second.
        margin: how far the label leads the runner-up in the mean.
        standard_error: of that margin, paired over chains; nan from one chain.
        bound: the lower confidence bound of the true margin over every rival, the least of them; -inf
            before anything can be said.
        needed: equally likely totals of chains at which this request will be decided, ascending; no
            more than a forecast, and empty once it is.
    """

    label: int
    runner_up: int
    margin: float
    standard_error: float
    bound: float
    needed: tuple[int, ...]

    @property
    def decided(self) -> bool:
        """Whether the label is settled against every rival."""
        return self.bound > 0


def decide(outputs: Tensor, stopping: Stopping) -> Decision:
    """Judge one request by the outputs [n, classes] of its first n chains.

    Raises ValueError for no chains, fewer than two classes or an output that is not finite.
    """
    if outputs.ndim != 2 or len(outputs) < 1 or outputs.shape[1] < 2:
        raise ValueError(f"outputs must be [chains, two classes or more], not {list(outputs.shape)}")
    x = outputs.detach().cpu().double()
    if not bool(x.isfinite().all()):
        raise ValueError("an output is not a finite number")
    n, classes = x.shape
    order = x.mean(0).argsort(descending=True, stable=True)
    margins = x[:, order[:1]] - x[:, order[1:]]  # [n, classes - 1], the runner-up's first
    means = margins.mean(0)
    spreads = margins.std(0) if n > 1 else torch.full_like(means, torch.nan)
    level = stopping.delta / (classes - 1)
    factor = critical(n, level) / n**0.5 if n >= stopping.least else math.inf
    bound = float((means - factor * spreads).min()) if factor < math.inf else -math.inf
    needed: tuple[int, ...] = ()
    if bound <= 0:
        effect = float(torch.where(means > 0, means / spreads, 0.0).min())
        needed = UNSEEN if n == 1 else _forecast(effect, n, level, stopping.least)
    return Decision(
        label=int(order[0]),
        runner_up=int(order[1]),
        margin=float(means[0]),
        standard_error=float(spreads[0]) / n**0.5,
        bound=bound,
        needed=needed,
    )


@lru_cache(maxsize=65536)
def critical(n: int, level: float) -> float:
    """The t-statistic of n normal margins above which their mean is positive, tested at every n.

    The chance that t ever exceeds it, where the true mean is 0 or less, is at most `level`.  It is inf
    where n is so small that no t would do.
    """
    if n < 2:
        return math.inf

    def excess(log_t: float) -> float:
        return _log_ratio(math.exp(log_t), n) + math.log(level)

    low, high = -20.0, 30.0  # t from 2e-9 to 1e13
    return math.exp(brentq(excess, low, high)) if excess(high) > 0 else math.inf


def _log_ratio(t: float, n: int) -> float:
    """Log likelihood ratio of t > 0: effects half-normal with variance g, against an effect of 0."""
    g = EFFECT_VARIANCE
    shrink = 1 + n * g
    positive = stdtr(n, n * t / math.sqrt((n + 1 / g) * (n - 1 + t**2 / shrink)))
    kernel = math.log1p(t**2 / (n - 1)) - math.log1p(t**2 / (n - 1) / shrink)
    return math.log(2 * positive) - math.log(shrink) / 2 + n / 2 * kernel


def _forecast(effect: float, n: int, level: float, least: int) -> tuple[int, ...]:
    """Totals of chains at which the test would decide if the true effect were each of five values.

    They are the 90, 70, 50, 30 and 10 % points of a normal around the effect seen, whose standard
    error is sqrt((1 + effect^2 / 2) / n) (Hedges 1981).
    """
    error = math.sqrt((1 + effect**2 / 2) / n)
    totals = range(max(n + 1, least), FORECAST_LIMIT)
    return tuple(
        totals.start
        + bisect_left(totals, True, key=lambda m: critical(m, level) / m**0.5 < effect + z * error)
        for z in _DECILES
    )


def next_round(needed: Sequence[int], taken: int, cap: int, seconds: Callable[[int], float]) -> int:
    """How many chains to run next; 0 where the cap is reached.

    A round costs what it costs whether or not the request is settled half-way, and a round too few
    costs another one.  So the size is the one that is cheapest on average over `needed`, taking it
    that whatever is then still missing comes in one round of just that size.  Where chains cost time
    that gives about the least of `needed`, where slots stand idle it fills them.  Of sizes
    that cost the same to 1 % the largest is taken.

    Args:
        needed: equally likely totals, `Decision.needed` or, before the first round, `UNSEEN`.
        taken: chains run so far.
        cap: the most chains that this request may have.
        seconds: the cost curve: time of a round of that many chains, 1 to `cap`, as measured.
    """
    left = cap - taken
    if left <= 0:
        return 0
    cost = [0.0, *(seconds(size) for size in range(1, left + 1))]
    missing = [min(max(total - taken, 1), left) for total in needed]
    mean = [
        cost[size] + sum(cost[max(m - size, 0)] for m in missing) / len(missing) for size in range(left + 1)
    ]
    best = min(mean[1:])
    return max(size for size in range(1, left + 1) if mean[size] <= best * _SLACK)
