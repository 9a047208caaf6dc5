"""The cost curve of a runner: seconds of one step of a batch, by its size.

Measured once when the engine starts and followed while it runs, because other work on the machine
changes it.  Batch width, prices of requests and sizes of rounds all come from this curve.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from metastable.dynamics.base import Kind
from metastable.engine.runners import Batch, Runner

CLASSIFY = "classify"
Work = Kind | str  #: a kind of chain, or CLASSIFY
FOLLOW = 0.1  # weight of a new observation


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
) -> Costs:
    """Time the runner on every kind and size; the best of `repeats`, after one run to warm up."""

    def best(work: Callable[[], object]) -> float:
        work()
        times = []
        for _ in range(repeats):
            started = clock()
            work()
            times.append(clock() - started)
        return max(min(times), 1e-9)

    curves: dict[Work, dict[int, float]] = {CLASSIFY: {}}
    for size in sizes:
        x = torch.rand(size, *shape)
        keys = [(0, chain) for chain in range(size)]
        curves[CLASSIFY][size] = best(lambda x=x: runner.classify(x))  # type: ignore[misc]
        for kind in kinds:
            batch = Batch(x, keys, [0] * size, [kind.probe] * size)
            seconds = best(lambda kind=kind, batch=batch: runner.advance(kind, batch, 1))  # type: ignore[misc]
            curves.setdefault(kind, {})[size] = seconds
    return Costs(curves)
