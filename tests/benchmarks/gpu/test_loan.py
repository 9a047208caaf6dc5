"""The rehearsal of a loan, and that nothing in it stops the rest or is lost."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import loan
from benchmarks.gpu.loan import Piece
from benchmarks.gpu.returned import BYTES, FILES, Returned, finding
from metastable.errors import MetastableError

PLAYED = "tests.benchmarks.gpu.piece"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    records = np.random.default_rng(0).integers(0, 256, (10, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(10)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(records.tobytes())
    return tmp_path / "data"


def spend(
    monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str, pieces: tuple[Piece, ...] = loan.PIECES
) -> tuple[int, dict[str, object]]:
    """Status and loan.json of the command."""
    monkeypatch.setattr(loan, "PIECES", pieces)
    monkeypatch.setattr(sys, "argv", ["loan", "--out", str(out), "--device", "cpu", *arguments])
    status = 0
    try:
        loan.main()
    except SystemExit as end:
        status = int(end.code or 0)
    found: dict[str, object] = json.loads((out / "loan.json").read_text())
    return status, found


def states(found: dict[str, object]) -> dict[str, str]:
    return {row["piece"]: row["state"] for row in found["rows"]}  # type: ignore[attr-defined]


def test_the_rehearsal_runs_every_piece(
    tiny_folder: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mine = tuple(piece for piece in loan.PIECES if piece.name != "harden")  # which has a rehearsal of its own
    arguments = ["--tiny", "--minutes", "9", "--bundle", str(tiny_folder), "--data", str(data)]
    status, found = spend(monkeypatch, tmp_path / "out", *arguments, pieces=mine)
    assert set(states(found).values()) == {"done"}, (tmp_path / "out" / "loan.log").read_text()
    assert status == 0
    results: dict[str, dict[str, list[dict[str, object]]]] = found["results"]  # type: ignore[assignment]
    assert all(row["ok"] for row in results["correct"]["rows"])
    assert {row["chains"] for row in results["fast"]["rows"]} == {1, 2}
    assert not [
        row for name in ("fast", "own", "profile") for row in results[name]["rows"] if "failed" in row
    ]
    assert [row["kernel"] for row in results["profile"]["rows"]].count("all") == 2
    assert results["serve"]["rows"][0]["load"] == "closed"
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"loan.json", "loan.log", "energy-weights-fp16.safetensors", "energy-log.jsonl"} <= files
    assert len(files) <= FILES
    assert "fast: 2 chains, graphs bf16: " in capsys.readouterr().out


def test_the_order_of_value_begins_with_what_all_else_needs() -> None:
    assert [piece.name for piece in loan.PIECES][:4] == ["correct", "fast", "own", "profile"]
    for piece in loan.PIECES:
        values = dict.fromkeys(("data", "bundle", "device", "work", "folder", "minutes"), "1")
        assert "{" not in piece.arguments.format(**values)
    assert sum(piece.minutes or 0 for piece in loan.PIECES) <= 9
    with pytest.raises(MetastableError, match="no piece magic: choose from correct, "):
        loan.chosen("fast,magic")
    assert [piece.name for piece in loan.chosen("serve,fast")] == ["serve", "fast"]


def test_a_piece_that_fails_or_hangs_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loan, "LEAST", 0.0)
    pieces = (
        Piece("broken", 1.0, PLAYED, "{folder} --status 3"),
        Piece("hanging", 2 / 60, PLAYED, "{folder} --sleep 99 --files kept.bin:5", back=("*.bin",)),
        Piece("absent", 1.0, "benchmarks.gpu.nothing", ""),
        Piece("fine", 1.0, PLAYED, "{folder}"),
    )
    started = time.monotonic()
    status, found = spend(monkeypatch, tmp_path / "out", "--minutes", "5", "--tiny", pieces=pieces)
    assert time.monotonic() - started < 60
    assert status == 1
    assert states(found) == {
        "broken": "failed: status 3",
        "hanging": "over its limit",
        "absent": "left out: there is no benchmarks.gpu.nothing",
        "fine": "done",
    }
    assert set(found["results"]) == {"broken", "hanging", "fine"}  # type: ignore[call-overload]
    assert (tmp_path / "out" / "hanging-kept.bin").stat().st_size == 5
    assert (tmp_path / "out" / "loan.log").read_text().count("tiny") == 3


def test_a_loan_that_is_over_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = (Piece("late", 1.0, PLAYED, "{folder}"), Piece("rest", None, PLAYED, "{folder}"))
    status, found = spend(monkeypatch, tmp_path / "out", "--minutes", "0.1", pieces=pieces)
    assert (status, set(states(found).values())) == (0, {"left out: no time"})


def test_what_is_handed_back_is_small_flat_and_follows_what_changes(tmp_path: Path) -> None:
    folder, out = tmp_path / "piece", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    returned = Returned(out, {})
    returned.begin("train", folder, ("*.first", "*"))
    (folder / "z.first").write_bytes(b"1")
    (folder / "large").write_bytes(bytes(BYTES + 1))
    for i in range(9):
        (folder / f"f{i}").write_bytes(b"old")
    left_out = returned.collect()
    assert len(list(out.iterdir())) == FILES
    assert (out / "train-z.first").exists()
    assert left_out == [*(f"f{i}" for i in range(5, 9)), "large"]
    (folder / "f0").unlink()
    (folder / "f1").write_bytes(b"newer")
    returned.collect()
    assert not (out / "train-f0").exists()
    assert (out / "train-f1").read_bytes() == b"newer"
    assert len(list(out.iterdir())) == FILES


def test_findings_are_what_somebody_would_look_for() -> None:
    assert finding({"check": "words", "ok": True, "value": 0}) == ""
    assert finding({"check": "words", "ok": False, "value": 3}) == "FAILED words: 3"
    assert finding({"kernel": "gemm", "us": 1.0}) == ""
    row = {"chains": 100, "runner": "graphs", "us": 50.0, "ratio": 12.5, "peak_share": 0.31}
    assert finding(row) == "100 chains, graphs: 50.0 us, 12.5 times eager, 31.0% of the peak"
