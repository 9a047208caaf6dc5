"""The dry run of item 4: a table in pieces."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import judge
from metastable import settings
from metastable.attacks.catalogue import ATTACKS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (10, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(10)
        (folder / name).write_bytes(records.tobytes())
    return tmp_path / "data"


def test_every_row_names_a_defense_of_the_papers_and_an_attack() -> None:
    known = settings.load(judge.SETTINGS)
    for rows in judge.TABLES.values():
        for row in rows:
            setting, attack, n = row.split(":")
            assert setting in known.names
            assert attack in ATTACKS
            assert int(n) >= 100
    assert set(judge.CURVE) == {known[f"hill_{steps}"].steps for steps in judge.CURVE}
    assert known["hill_1500"].chains == 150


@pytest.mark.slow
def test_a_piece_without_time_says_how_far_it_came_and_the_next_goes_on(
    tiny_folder: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(judge, "TABLES", {"hill": ("hill_1:transfer:1",)})
    few = tmp_path / "few.yaml"
    setting = "hill_1: {dynamics: langevin, network: energy, chains: 2, steps: 1}"
    few.write_text(f"default: hill_1\ncaps: {{chains: 9, steps: 9}}\nsettings:\n  {setting}\n")

    def piece(minutes: str) -> dict[str, object]:
        arguments = ["--device", "cpu", "--tiny", "--bundle", str(tiny_folder), "--table", "hill"]
        arguments += ["--data", str(data), "--work", str(tmp_path / "work"), "--minutes", minutes]
        arguments += ["--settings-file", str(few)]
        monkeypatch.setattr(sys, "argv", ["judge", *arguments])
        judge.main()
        found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    first = piece("0")
    assert first["finished"] is False
    assert first["rows"] == [{"setting": "hill_1", "attack": "transfer", "n": 1, "done": 0}]
    last = piece("2")
    assert last["finished"] is True
    assert [row["n"] for row in last["rows"]] == [1]  # type: ignore[attr-defined]


def test_goals_need_both_figures() -> None:
    row = {"setting": "hill_1500", "attack": "bpda-eot", "natural": [0.85, 0, 1], "unbroken": [0.5, 0, 1]}
    assert judge.judged([row])[0]["met"] is False
    assert judge.judged([{**row, "unbroken": [0.6, 0, 1]}])[0]["met"] is True
    assert judge.judged([{**row, "setting": "hill_10"}]) == []


def test_a_measurement_that_fails_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="status 3"):
        judge.ended([sys.executable, "-c", "raise SystemExit(3)"], 1.0)
