"""The cost curve of a runner: seconds of one step of a batch, by its size.

Measured once when the engine starts, in bounded time, and followed while it runs, because other work on the
machine changes it.  Batch width, prices of requests and sizes of rounds all come from this curve.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from metastable.dynamics.base import Kind
from metastable.engine.runners import Batch, Runner

CLASSIFY, LOOK = "classify", "look"
"""One classification, and what is done to an image before it is purified (`inspection`)."""
Work = Kind | str  #: a kind of chain, CLASSIFY or LOOK
FOLLOW = 0.1  # weight of a new observation
DEAR = 0.1
"""Seconds of work that is timed once: beside so much, what else the machine does changes little."""


class Costs:
    """Curves {work: {batch size: seconds}}; sizes between two known ones are interpolated.

    Raises ValueError for a curve without positive sizes and seconds.
    """

    def __init__(self, curves: Mapping[Work, Mapping[int, float]]) -> None:
        for work, curve in curves.items():
            if not curve or min(curve) < 1 or min(curve.values()) <= 0:
                raise ValueError(f"the cost curve of {work} needs positive sizes and seconds")
        self._curves = {work: dict(sorted(curve.items())) for work, curve in curves.items()}

    def __contains__(self, work: object) -> bool:
        return work in self._curves

    def add(self, other: Costs) -> None:
        """Take over the curves of `other`, which may be newer ones of work that is known."""
        self._curves.update(other._curves)

    def seconds(self, work: Work, size: int) -> float:
        """Of one step (or one classification) of a batch of `size`."""
        curve = self._curves[work]
        sizes = list(curve)
        if size <= sizes[0] or size >= sizes[-1]:
            end = sizes[0] if size <= sizes[0] else sizes[-1]
            return curve[end] * (1.0 if size <= end else size / end)
        right = bisect_left(sizes, size)
        low, high = sizes[right - 1], sizes[right]
        share = (size - low) / (high - low)
        return (1 - share) * curve[low] + share * curve[high]

    def unit(self, work: Work) -> float:
        """Seconds of one chain at the batch size where that is least."""
        return min(seconds / size for size, seconds in self._curves[work].items())

    def width(self, work: Work, budget: float) -> int:
        """The largest known size for which a step and a classification fit into `budget` seconds."""
        fits = [
            size
            for size in self._curves[work]
            if self.seconds(work, size) + self.seconds(CLASSIFY, size) <= budget
        ]
        return max(fits, default=min(self._curves[work]))

    def observe(self, work: Work, size: int, seconds: float) -> None:
        """Let the nearest known size follow a measurement."""
        curve = self._curves[work]
        near = min(curve, key=lambda known: abs(known - size))
        # As a ratio, so that an observation between two sizes does not bend the curve.
        ratio = min(max(seconds / self.seconds(work, size), 0.1), 10.0)
        curve[near] *= 1 + FOLLOW * (ratio - 1)


def measure(
    runner: Runner,
    kinds: Iterable[Kind],
    shape: tuple[int, int, int],
    sizes: Sequence[int],
    clock: Callable[[], float],
    repeats: int = 2,
    *,
    budget: float = math.inf,
    look: Callable[[Tensor], object] | None = None,
) -> Costs:
    """Time the runner on every kind and size, small sizes first, after one run of each to warm up.

    The least size is timed once in any case.  A batch that is not expected to fit into what is left of the
    budget is not run: an image of it is taken to cost what it does in the largest batch that was.

    Args:
        shape: (C, H, W) of images.
        repeats: timings, of which the least counts; one of what takes longer than DEAR seconds.
        budget: seconds of `clock` for everything.
        look: what LOOK stands for, of images [N, C, H, W]; None leaves it out.
    """
    ends = clock() + budget
    works = _works(runner, kinds, look)
    curves: dict[Work, dict[int, float]] = {work: {} for work in works}
    overhead = dict.fromkeys(works, 0.0)  # of the first run at a size: graphs are compiled for it
    for size in sorted(sizes):
        x = torch.rand(size, *shape)
        for work, run in works.items():
            curve = curves[work]
            each = max(curve.items(), default=(1, 0.0))
            expected = each[1] * size / each[0]
            if curve and clock() + overhead[work] + 2 * expected > ends:
                curve[size] = expected
                continue
            first, best = _timed(lambda run=run, x=x: run(x), clock, repeats, ends)  # type: ignore[misc]
            curve[size], overhead[work] = best, max(first - best, 0.0)
    return Costs(curves)


def _works(
    runner: Runner, kinds: Iterable[Kind], look: Callable[[Tensor], object] | None
) -> dict[Work, Callable[[Tensor], object]]:
    def step(kind: Kind, x: Tensor) -> object:
        keys = [(0, chain) for chain in range(len(x))]
        return runner.advance(kind, Batch(x, keys, [0] * len(x), [kind.probe] * len(x)), 1)

    works: dict[Work, Callable[[Tensor], object]] = {CLASSIFY: runner.classify}
    works |= {kind: partial(step, kind) for kind in kinds}
    return works if look is None else works | {LOOK: look}


def _timed(
    work: Callable[[], object], clock: Callable[[], float], repeats: int, ends: float
) -> tuple[float, float]:
    """Seconds of the first run, and the least of later ones: one, and up to `repeats` if there is time."""

    def once() -> float:
        started = clock()
        work()
        return max(clock() - started, 1e-9)

    first = once()
    times = [once()]
    while len(times) < repeats and times[-1] <= DEAR and clock() + times[-1] <= ends:
        times.append(once())
    return first, min(times)
