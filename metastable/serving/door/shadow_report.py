"""What the shadow found, summed up, as a small file of JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from metastable.serving.backends.base import Judged
from metastable.serving.faults import report as report_fault

EVERY = 10.0
"""Seconds between two times that the file is written."""
WORK = ("anomaly", "purify", "classify")


@dataclass(frozen=True)
class Seen:
    """An answer beside its shadow: whether label and flag differ, and the chains and seconds of each."""

    label: bool
    flag: bool
    chains: tuple[int, int]
    seconds: tuple[float, float]

    @classmethod
    def of(cls, answer: Judged, shadow: Judged) -> Self:
        both = (answer, shadow)
        flags = [one.body["anomaly"]["flagged"] or one.body["anomaly"]["shift"]["flagged"] for one in both]
        first, second = (sum(one.seconds.get(stage, 0.0) for stage in WORK) for one in both)
        return cls(
            label=answer.body["label"] != shadow.body["label"],
            flag=bool(flags[0]) != bool(flags[1]),
            chains=(answer.body["chains"], shadow.body["chains"]),
            seconds=(first, second),
        )


@dataclass
class Pair:
    """Sums over the images compared, of an answer's setting and a shadow's; lists are answer, shadow."""

    compared: int = 0
    label_differs: int = 0
    flag_differs: int = 0
    chains: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    seconds: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])


class Report:
    """Sums since the start of the server, for one event loop."""

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._path: Path | None = None
        self._written = float("-inf")

    def count(self, outcome: str) -> None:
        self._outcomes[outcome] += 1

    def add(self, pair: tuple[str, str], seen: Seen) -> None:
        sums = self._pairs.setdefault(pair, Pair())
        sums.compared += 1
        sums.label_differs += seen.label
        sums.flag_differs += seen.flag
        sums.chains = [a + b for a, b in zip(sums.chains, seen.chains, strict=True)]
        sums.seconds = [round(a + b, 6) for a, b in zip(sums.seconds, seen.seconds, strict=True)]

    def content(self) -> dict[str, Any]:
        """What the file says; docs/operating.md explains it."""
        pairs = [
            {"setting": setting, "shadow": shadow} | dataclasses.asdict(sums)
            for (setting, shadow), sums in self._pairs.items()
        ]
        return {"sampled": dict(self._outcomes), "pairs": pairs}

    async def write_at(self, path: Path) -> None:
        """Write it there, if the last time was EVERY seconds ago."""
        self._path = path
        if time.monotonic() - self._written >= EVERY:
            await self.write()

    async def write(self) -> None:
        """Write it where it was last asked for; a disk that is full costs no more than the file."""
        if self._path is None:
            return
        self._written = time.monotonic()
        try:
            await asyncio.to_thread(_replace, self._path, json.dumps(self.content(), indent=1) + "\n")
        except OSError as error:
            report_fault("the shadow's report cannot be written", error)


def _replace(path: Path, text: str) -> None:
    """A reader finds the old file or the new one, and no half."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    os.replace(beside, path)
