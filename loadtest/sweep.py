"""The highest rate at which a latency target is met, for every arm, and what is bought with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from loadtest import arms as arms_module
from loadtest import records, summary, validity
from loadtest.arms import Arm
from loadtest.compare import metric
from loadtest.figures import ArmFigures, Identity, Latency, Point, Share, SourceFigures
from loadtest.items import Item, Source
from loadtest.records import Record
from loadtest.schedule import Load


def search(meets: Callable[[float], bool], low: float, high: float, probes: int) -> float | None:
    """The highest rate in [low, high] found to meet the target with at most `probes` trials; None for none.

    Rates are taken to meet it up to some point: doubled from `low` until one fails, then halved in
    ratio, so that every trial halves the logarithm of what is unknown.  Raises ValueError unless
    0 < low <= high and probes >= 1.
    """
    if not 0 < low <= high or probes < 1:
        raise ValueError(f"a search needs 0 < low <= high and a probe, not {low}, {high} and {probes}")
    best, failed, rate = None, None, low
    for _ in range(probes):
        if meets(rate):
            best = rate
        else:
            failed = rate
        if best is None or best >= high:
            break
        rate = min(high, 2 * best) if failed is None else math.sqrt(best * failed)
    return best


@dataclasses.dataclass(frozen=True)
class LatencyBound:
    """`quantile` of the latency within `ms`, and all but 1 % answered, at rates from `low` to `high`."""

    quantile: str
    ms: float
    low: float
    high: float
    probes: int

    def met(self, one: ArmFigures) -> bool:
        value = metric(one, self.quantile)
        answered = one.answered >= (1 - validity.ALLOWED_UNANSWERED) * one.n
        return value is not None and value <= self.ms and answered


@dataclasses.dataclass(frozen=True)
class Probe:
    """One trial of a rate."""

    rate: float
    met: bool
    n: int
    achieved_rate: float | None
    outcomes: dict[str, int]
    latency_ms: dict[str, Latency]
    reasons: list[str]


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """An arm: the highest rate that meets the goal, None for none, and its figures over all probes."""

    arm: str
    url: str
    identity: Identity
    rate: float | None
    natural: Share | None
    robust: Share | None
    sources: list[SourceFigures]
    probes: list[Probe]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What sweep.json holds; `target` is the goal's name there."""

    target: LatencyBound
    rows: list[SweepRow]


def sweep(
    arms: Sequence[Arm],
    sources: Sequence[Source],
    items: Sequence[Item],
    load: Load,
    goal: LatencyBound,
    *,
    warmup: int,
    seed: int,
) -> tuple[Sweep, list[Record]]:
    """One row an arm: the highest rate that meets the goal, every probe, and accuracy over all probes.

    Every probe plays all items at its rate (`load.rate` is not used).  Accuracy is pooled over an arm's
    probes: overload changes when a verdict comes, and only with a deadline what it says.
    """
    attacks = {source.name: source.attack for source in sources}
    rows, everything = [], []
    for arm in arms:
        probes: list[Probe] = []
        taken: list[Record] = []

        def meets(rate: float, arm: Arm = arm, probes: Any = probes, taken: Any = taken) -> bool:
            offered = dataclasses.replace(load, rate=rate)
            blocks = arms_module.run([arm], items, offered, rounds=1, warmup=warmup, seed=seed + len(probes))
            these = records.of_blocks(blocks, items, attacks)
            one = summary.arm_summary(arm, blocks, these, goal.ms)
            reasons = validity.reasons([arm], [one])
            taken.extend(these)
            probes.append(_probe(rate, one, goal, reasons))
            return goal.met(one)

        best = search(meets, goal.low, goal.high, goal.probes)
        pooled = summary.arm_summary(arm, [], taken, goal.ms)
        rows.append(
            SweepRow(
                arm=arm.name,
                url=arm.target.url,
                identity=pooled.identity,
                rate=best,
                natural=pooled.natural,
                robust=pooled.robust,
                sources=pooled.sources,
                probes=probes,
            )
        )
        everything += taken
    return Sweep(goal, rows), everything


def _probe(rate: float, one: ArmFigures, goal: LatencyBound, reasons: list[str]) -> Probe:
    return Probe(
        rate=round(rate, 3),
        met=goal.met(one),
        n=one.n,
        achieved_rate=one.achieved_rate,
        outcomes=one.outcomes,
        latency_ms=one.latency_ms,
        reasons=reasons,
    )


def points(rows: Sequence[SweepRow]) -> list[Point]:
    """The rows as loadtest.plots.frontier draws them: accuracy over the highest rate."""
    return [Point(row.arm, row.rate, None, None, row.sources) for row in rows]
