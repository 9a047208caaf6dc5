"""One record a request: what the JSONL file holds and every figure is computed from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.arms import Block
from loadtest.items import Item
from loadtest.outcome import ANSWER, Reply
from loadtest.sets import CLEAN


@dataclass(frozen=True)
class Record:
    """A request of a run.

    Attributes:
        item: place in the run's items; arms that share it met the same image.
        source, row, index, label: the image (loadtest.items.Item), and `attack` what was done to it.
        measured: false for the warm-up.
        at: seconds after the run's start at which it was due.
        latency_ms: from when it was due to its outcome; lag_ms: until the client got round to it.
        outcome: a name of loadtest.outcome; verdict: the answer, if there is one.
    """

    arm: str
    turn: int
    item: int
    source: str
    row: int
    index: int
    label: int
    attack: str
    measured: bool
    at: float
    latency_ms: float
    lag_ms: float
    outcome: str
    verdict: Reply | None

    @property
    def answered(self) -> bool:
        return self.outcome == ANSWER

    @property
    def right(self) -> bool:
        return self.verdict is not None and self.verdict.label == self.label

    @property
    def waited_ms(self) -> float:
        """The latency, infinite without an answer."""
        return self.latency_ms if self.answered else math.inf

    @property
    def attacked(self) -> bool:
        return self.attack != CLEAN


def of_blocks(blocks: Iterable[Block], items: Sequence[Item], attacks: dict[str, str]) -> list[Record]:
    """Records in order of blocks and items; `attacks` says what was done to the images of each source."""
    records = []
    for block in blocks:
        for exchange in block.played.exchanges:
            number = block.items[exchange.number]
            item = items[number]
            records.append(
                Record(
                    arm=block.arm,
                    turn=block.turn,
                    item=number,
                    source=item.source,
                    row=item.row,
                    index=item.index,
                    label=item.label,
                    attack=attacks[item.source],
                    measured=exchange.number >= block.warmup,
                    at=round(block.started + exchange.due, 4),
                    latency_ms=round(1e3 * exchange.latency, 3),
                    lag_ms=round(1e3 * (exchange.sent - exchange.due), 3),
                    outcome=exchange.outcome,
                    verdict=exchange.verdict,
                )
            )
    return records


def write(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line."""
    with path.open("w") as file:
        for record in records:
            file.write(json.dumps(dataclasses.asdict(record)) + "\n")
