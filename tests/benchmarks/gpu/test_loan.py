"""The rehearsal of a loan, and that nothing in it stops the rest."""

from __future__ import annotations

import json
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu import loan
from benchmarks.gpu.loan import Loan
from benchmarks.gpu.pieces import PIECES, Piece, chosen
from benchmarks.gpu.returned import FILES, Returned
from metastable import console
from metastable.errors import MetastableError

PLAYED = "tests.benchmarks.gpu.piece"
TRAINING = 450 / 720  # of a loan, by the order of value


def spend(
    monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str, pieces: tuple[Piece, ...] = PIECES
) -> tuple[int, dict[str, object]]:
    """Status and loan.json of the command."""
    monkeypatch.setattr("benchmarks.gpu.pieces.PIECES", pieces)
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


@pytest.mark.slow
def test_the_rehearsal_runs_every_piece(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As typed: everything but the bundle, which is smaller, by the command's own defaults."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.delenv("METASTABLE_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["loan", "--tiny", "--bundle", str(tiny_folder), "--device", "cpu"])
    loan.main()
    found = json.loads((tmp_path / "out" / "loan.json").read_text())
    assert set(states(found).values()) == {"done"}, (tmp_path / "out" / "loan.log").read_text()
    assert list(states(found)) == [piece.name for piece in PIECES]
    results: dict[str, dict[str, list[dict[str, object]]]] = found["results"]
    assert all(row["ok"] for row in results["correct"]["rows"])
    assert {row["chains"] for row in results["fast"]["rows"]} == {1, 2}
    assert not [
        row for name in ("fast", "own", "profile") for row in results[name]["rows"] if "failed" in row
    ]
    assert [row["kernel"] for row in results["profile"]["rows"]].count("all") == 2
    assert results["serve"]["rows"][0]["load"] == "closed"
    assert [row["what"] for row in results["harden"]["rows"]] == ["training", "test split"]
    assert [row["what"] for row in results["energy"]["rows"]][-1] == "training"
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"loan.json", "loan.log", "harden.tar", "energy.tar", "energy-checkpoint.pt"}
    with tarfile.open(tmp_path / "out" / "harden.tar") as archive:
        assert {"purifier.fp16.safetensors", "classifier.fp16.safetensors", "log.jsonl"} <= set(
            archive.getnames()
        )
    with tarfile.open(tmp_path / "out" / "energy.tar") as archive:
        assert {"weights-fp16.safetensors", "config.json", "log.jsonl"} <= set(archive.getnames())
    said = capsys.readouterr().out
    for beginning in (
        "fast: 2 chains, graphs bf16: ",
        "harden: training: natural ",
        "energy: check: update ",
    ):
        assert f"\n{beginning}" in said


def test_the_order_of_value_begins_with_what_all_else_needs() -> None:
    names = ["correct", "fast", "own", "profile", "harden", "energy", "serve"]
    assert [piece.name for piece in PIECES] == names
    for piece in PIECES:
        values = dict.fromkeys(("data", "bundle", "device", "work", "folder", "minutes"), "1")
        assert "{" not in piece.arguments.format(**values) + piece.flags.format(**values)
    with pytest.raises(MetastableError, match="no piece magic: choose from correct, "):
        chosen("fast,magic")
    assert [piece.name for piece in chosen("serve,fast")] == ["serve", "fast"]
    with pytest.raises(MetastableError, match="NAME of harden, energy, not 'fast=--x'"):
        chosen(None, ["fast=--x"])


@pytest.mark.parametrize("minutes", [5, 9, 12])
def test_training_keeps_its_share_of_a_loan_and_both_have_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    """Every piece takes all that it may: the worst case."""
    now = 1000.0
    monkeypatch.setattr(loan.time, "monotonic", lambda: now)
    made = Loan(60 * minutes, tmp_path, Returned(tmp_path / "out", {}), {}, tiny=False)
    taken = {}
    for i, piece in enumerate(PIECES):
        taken[piece.name] = made.limit(piece, PIECES[i + 1 :])
        now += taken[piece.name]
    assert sum(taken.values()) == pytest.approx(60 * minutes)
    assert taken["harden"] + taken["energy"] >= TRAINING * 60 * minutes - 1e-6
    assert min(taken["harden"], taken["energy"]) > 60 * (loan.LEAST + loan.GRACE)
    assert taken["serve"] == 0  # only where time is left
    assert taken["correct"] == 60
    now = 1000.0
    harden, energy = chosen("harden,energy")
    assert made.limit(energy, ()) == 60 * minutes  # what nobody took is its own
    assert made.limit(harden, ()) == 60 * minutes


@pytest.mark.slow
def test_a_piece_that_fails_or_hangs_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loan, "LEAST", 0.0)
    monkeypatch.setattr(loan, "SLACK", 1.0)
    pieces = (
        Piece("broken", PLAYED, "{folder} --status 3", 1.0),
        Piece("hanging", PLAYED, "{folder} --sleep 99 --files kept.bin:5", 2 / 60, apart=("*.bin",)),
        Piece("absent", "benchmarks.gpu.nothing", "", 1.0),
        Piece("fine", PLAYED, "{folder}", 1.0),
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


@pytest.mark.slow
def test_a_result_is_handed_back_while_its_piece_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "with a space"
    pieces = (Piece("asking", PLAYED, f"{{folder}} --seen '{out / 'loan.json'}'", 3.0),)
    status, found = spend(monkeypatch, out, pieces=pieces)
    assert (status, states(found)) == (0, {"asking": "done"}), (out / "loan.log").read_text()


def test_a_training_that_is_paused_does_not_count_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = (Piece("long", PLAYED, "{folder} --paused", share=1.0, flags="--own 1"),)
    status, found = spend(monkeypatch, tmp_path / "out", "--flags", "long=--given 2 --more", pieces=pieces)
    assert (status, states(found)) == (0, {"long": "paused"})
    assert "full --given 2 --more\n" in (tmp_path / "out" / "loan.log").read_text()


def test_a_loan_that_is_over_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = (Piece("late", PLAYED, "{folder}", 1.0), Piece("rest", PLAYED, "{folder}", share=1.0))
    status, found = spend(monkeypatch, tmp_path / "out", "--minutes", "0.1", pieces=pieces)
    assert (status, set(states(found).values())) == (0, {"left out: no time"})


@pytest.mark.slow
def test_a_run_goes_on_from_what_an_earlier_loan_handed_back(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a bare machine: nothing but the returned files is left of the first one."""
    monkeypatch.delenv("METASTABLE_DATA", raising=False)
    given = ["--tiny", "--minutes", "9", "--bundle", str(tiny_folder), "--only", "energy"]
    first, second = tmp_path / "first", tmp_path / "second"
    _, before = spend(monkeypatch, first, *given, "--flags", "energy=--updates 2")
    _, after = spend(monkeypatch, second, *given, "--resume", str(first))
    updates = [
        [row["update"] for row in found["results"]["energy"]["rows"] if row["what"] == "check"]  # type: ignore[index]
        for found in (before, after)
    ]
    assert updates == [[2], [4]]
    with tarfile.open(second / "energy.tar") as archive:
        log = archive.extractfile("log.jsonl")
        assert log is not None
        assert [json.loads(line)["update"] for line in log] == [2, 4]
    assert len(list(second.iterdir())) <= FILES
    monkeypatch.setattr(sys, "argv", ["loan", "--out", str(second), "--resume", str(second)])
    with pytest.raises(SystemExit) as end:
        loan.main()
    assert end.value.code == console.WRONG
    assert "choose another --out" in capsys.readouterr().err
