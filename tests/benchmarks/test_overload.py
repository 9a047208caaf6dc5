from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import overload
from benchmarks.asking import Answer
from benchmarks.overload import OverloadConfig
from tests.serving.door.conftest import png


@pytest.mark.server
def test_the_figures_of_an_overload(tiny_folder: Path, tmp_path: Path) -> None:
    config = OverloadConfig("local", "fast", clients=4, seconds=3.0)
    picture = tmp_path / "course.png"
    found = overload.measure(tiny_folder, png(), tmp_path / "work", config, picture)
    assert found["best_goodput"] > 0
    assert found["goodput_share"] == found["goodput"] / found["best_goodput"]
    asked = found["requests_a_second"] * config.seconds
    assert 0.5 * asked < sum(found["statuses"].values()) < 1.1 * asked + 2
    assert set(found["statuses"]) <= {"200", "503", "429"}
    assert found["memory_mb"]["before"] > 50
    assert found["recovered_s"] is not None
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_goodput_counts_verdicts_alone() -> None:
    answers = [Answer(at, 0.1, status) for at, status in ((1, "200"), (2, "503"), (3, "200"))]
    assert overload.goodput(answers, 4.0) == 0.5
