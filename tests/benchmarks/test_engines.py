from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

import pytest

from benchmarks import engines
from benchmarks.asking import Answer
from benchmarks.engines import EnginesConfig
from tests.serving.door.conftest import png


@pytest.mark.server
def test_a_row_of_an_engine(tiny_folder: Path, tmp_path: Path) -> None:
    config = EnginesConfig(alone=5, clients=4, seconds=2.0, rate=5.0, dear="fast", dear_clients=1)
    picture = tmp_path / "engines.png"
    [row] = engines.measure(tiny_folder, png(), tmp_path / "work", config, ["local"], picture)
    assert row["start_s"] > 0
    assert row["memory_mb"] > 50
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert row["goodput"] > 0
    assert row["dear_answers"] > 0
    assert math.isfinite(row["cheap_mixed_p99_ms"])
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_request_without_a_verdict_takes_for_ever() -> None:
    statuses = iter(["200", "503", "200", "200"])

    async def ask() -> Answer:
        return Answer(time.monotonic(), 0.01, next(statuses, "200"))

    found = asyncio.run(engines._paced(ask, 50.0, 0.2))
    assert math.isinf(max(found))
    assert min(found) == 0.01
    assert 5 <= len(found) <= 11
