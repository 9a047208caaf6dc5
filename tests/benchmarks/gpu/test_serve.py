"""The dry run of item 5."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import serve


@pytest.mark.slow
def test_the_dry_run_measures_capacity_and_loads(
    tiny_folder: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "serve.json"
    arguments = ["--device", "cpu", "--tiny", "--bundle", str(tiny_folder), "--settings", "fast,langevin"]
    arguments += ["--images", str(root / "samples"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["serve", *arguments])
    serve.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert [(row["setting"], row["load"]) for row in result["rows"]] == [
        (setting, load) for setting in ("fast", "langevin") for load in ("closed", "30%", "60%", "90%")
    ]
    for row in result["rows"]:
        assert row["refused"] == 0
        if row["load"] == "closed":
            assert row["answers"] > 0
            assert row["ms_an_answer"] == pytest.approx(1e3 / row["images_per_s"], rel=0.05)
        if row["answers"]:
            assert 0 < row["p50_ms"] <= row["p99_ms"]


def test_arrivals_have_their_rate_and_repeat() -> None:
    times = list(serve._arrivals(50.0, 20.0, seed=3))
    assert 850 < len(times) < 1150
    assert times == sorted(times)
    assert times[-1] < 20
    assert times == list(serve._arrivals(50.0, 20.0, seed=3))
