"""When things were done for one job, for those who trace requests."""

from __future__ import annotations

from typing import NamedTuple

MOST = 32
"""Parts of one stage that are kept; of more, neighbours become one."""


class Part(NamedTuple):
    """A stretch of time that a stage of a job took.

    Attributes:
        began, ended: seconds on the clock of whoever noted them, which is the engine's.
        chains: of the job in it: the most of any of its batches.
        steps: that each of these chains made.
        batches: how many of these it is.
    """

    stage: str
    began: float
    ended: float
    chains: int = 0
    steps: int = 0
    batches: int = 1


class Timeline:
    """The parts of one job's way, bounded whatever it takes.  One thread writes at a time, any may read."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Part]] = {}

    def add(self, stage: str, began: float, ended: float, *, chains: int = 0, steps: int = 0) -> None:
        """Note a part after those of its stage that are there."""
        parts = self._parts.setdefault(stage, [])
        if len(parts) == MOST:
            parts = self._parts[stage] = [_one(*two) for two in zip(parts[::2], parts[1::2], strict=True)]
        parts.append(Part(stage, began, ended, chains, steps))

    def parts(self) -> list[Part]:
        """All of them, by their beginning."""
        return sorted((part for parts in list(self._parts.values()) for part in parts), key=lambda p: p.began)


def _one(first: Part, second: Part) -> Part:
    return Part(
        first.stage,
        first.began,
        second.ended,
        max(first.chains, second.chains),
        first.steps + second.steps,
        first.batches + second.batches,
    )
