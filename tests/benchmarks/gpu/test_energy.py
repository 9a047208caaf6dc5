"""The dry run of the energy's sitting, and one that is cut short."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import energy, loan


def arguments(tiny_folder: Path, folder: Path, minutes: str) -> list[str]:
    data = loan.data_of(None, folder, tiny=True)
    given = ["--tiny", "--device", "cpu", "--bundle", str(tiny_folder), "--data", data, "--minutes", minutes]
    return [
        *given,
        "--run",
        str(folder / "run"),
        "--out",
        str(folder / "result.json"),
        "--",
        "--tau",
        "0.02",
        "--warm",
        "0",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("minutes", ["9", "0"])
def test_checks_are_rows_and_a_run_that_is_paused_says_so(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: str
) -> None:
    monkeypatch.delenv("METASTABLE_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["energy", *arguments(tiny_folder, tmp_path, minutes)])
    kept: list[int] = []
    saved = energy.common.save

    def save(args: object, result: dict[str, list[object]], **more: bool) -> str:
        kept.append(len(result["rows"]))
        return saved(args, result, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(energy.common, "save", save)
    energy.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert kept[:2] == [0, 1]  # a check is written before anything follows it
    *checks, last = result["rows"]
    assert [row["what"] for row in checks] == ["check"] * len(checks)
    assert checks[-1]["update"] == (4 if minutes == "9" else 2)
    assert all(0 <= row["accuracy"] <= 1 for row in checks)
    assert result["finished"] == ("returns" in last) == (minutes == "9")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["tau"] == 0.02
