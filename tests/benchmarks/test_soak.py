from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import happenings, soak
from benchmarks.rude import MANNERS
from benchmarks.soak import Course, SoakConfig
from tests.serving.door.conftest import png


@pytest.mark.server
def test_the_figures_of_a_soak(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FROZEN": 0.5, "QUIET": 0.5, "IDLE": 20, "CROWD": 8}.items():
        monkeypatch.setattr(happenings, name, value)
    config = SoakConfig("local", minutes=0.1, pause=1.0, clients=4)
    picture = tmp_path / "course.png"
    images = [png(), png(1)]
    found = soak.measure(tiny_folder, images, tmp_path / "work", config, picture)
    assert (found["wrong"], found["examples"]) == (0, [])
    assert found["requests"] == sum(found["outcomes"].values()) > 10
    assert min(found["verdicts"][setting] for setting in ("none", "fast")) > 3
    assert sum(found["verdicts"].values()) == found["outcomes"]["200"]
    assert set(found["rude"]) <= {manner.__name__ for manner in MANNERS}
    assert [len(gaps) for gaps in found["gaps_s"].values()] == [2, 1, 1, 1, 1]
    assert found["gaps_s"]["door_frozen"][0] >= 0.5
    assert found["memory_mb"]["begin"] > 50
    assert (found["exit_status"], found["left_running"]) == (0, 0)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_gap_is_the_longest_time_without_a_verdict() -> None:
    assert soak.longest_gap([1.0, 2.0, 5.0, 6.0], 1.5, 5.5) == 3.0
    assert soak.longest_gap([], 1.0, 4.0) == 3.0


def test_what_happened_again_is_told_together() -> None:
    course = Course(verdicts=[1.0, 20.0, 40.0, 59.0], happened=[(0.0, "a"), (30.0, "b"), (50.0, "a")])
    course.ended = 60.0
    course.memory = [(0.0, 10.0), (30.0, 30.0), (60.0, 20.0)]
    course.outcomes = [(1.0, "200"), (2.0, "503"), (3.0, "closed")]
    course.wrong = ["closed"]
    found = soak.figures(course, SoakConfig("local", minutes=1.0))
    assert found["gaps_s"] == {"a": [19.0, 9.0], "b": [10.0]}
    assert found["memory_mb"] == {"begin": 10.0, "most": 30.0, "end": 20.0}
    assert found["outcomes"] == {"200": 1, "503": 1, "closed": 1}
    assert (found["wrong"], found["examples"]) == (1, ["closed"])
