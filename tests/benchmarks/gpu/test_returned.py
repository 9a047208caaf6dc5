"""What comes back of a loan: eight files, none too large, complete at any moment."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu.pieces import PIECES
from benchmarks.gpu.returned import BYTES, FILES, Returned, finding, restore
from metastable.training import pieces


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        return opened.getnames()


def test_large_files_are_few_and_follow_what_changes(tmp_path: Path) -> None:
    folder, out = tmp_path / "piece", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    returned = Returned(out, {})
    returned.begin("train", folder, (), ("*.first", "*"))
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


def test_small_files_come_in_one_that_is_not_too_large(tmp_path: Path) -> None:
    folder, out = tmp_path / "piece", tmp_path / "out"
    folder.mkdir()
    returned = Returned(out, {}, archives=1)
    returned.begin("train", folder, ("*.first", "*"))
    (folder / "a").write_bytes(bytes(BYTES // 2))
    (folder / "b").write_bytes(bytes(BYTES // 2))  # with the archive's own bytes too many
    for name in ("z.first", "x.part", "result.json", "log.txt"):
        (folder / name).write_text("{}")
    assert returned.collect() == ["b"]
    assert names(out / "train.tar") == ["z.first", "a"]
    assert (out / "train.tar").stat().st_size <= BYTES
    (folder / "a").write_bytes(bytes(BYTES - 100))
    (folder / "b").write_text("now")
    assert returned.collect() == ["a"]
    assert names(out / "train.tar") == ["z.first", "b"]
    assert {path.name for path in out.iterdir()} == {"loan.json", "loan.log", "train.tar"}


@pytest.mark.slow
def test_each_training_of_a_loan_has_its_places(tmp_path: Path) -> None:
    """By the patterns of the loan, with files as large as the two trainings leave them."""
    out, chosen = tmp_path / "out", [piece for piece in PIECES if piece.back]
    assert [piece.name for piece in chosen] == ["harden", "energy"]
    returned = Returned(out, {}, archives=len(chosen))
    for piece in chosen:
        folder = tmp_path / piece.name
        folder.mkdir()
        returned.begin(piece.name, folder, piece.back, piece.apart)
        small = ("config.json", "log.jsonl", "metrics.json", "health.png", "samples.png", "so-far.json")
        for name in (*small, *(f"more{i}.json" for i in range(9))):
            (folder / name).write_bytes(bytes(200_000))
        for name in ("purifier.fp16.safetensors", "classifier.fp16.safetensors", "weights-fp16.safetensors"):
            (folder / name).write_bytes(bytes(4_000_000))
        (folder / "checkpoint.part").write_bytes(
            b"checkpoint" * 3_700_000
        )  # a bank of 4 000 chains, and Adam
        pieces.place(folder / "checkpoint.part", folder / "checkpoint.pt")
        assert returned.collect() == []
    assert "purifier.fp16.safetensors" in names(out / "harden.tar")
    assert "weights-fp16.safetensors" in names(out / "energy.tar")
    assert len(list(out.glob("energy-checkpoint.pt.*"))) == 3
    assert len(list(out.iterdir())) <= FILES
    assert all(path.stat().st_size <= BYTES for path in out.iterdir())
    again = tmp_path / "bare" / "energy"
    restore(out, "energy", again)
    assert pieces.read(again / "checkpoint.pt") == b"checkpoint" * 3_700_000
    assert (again / "config.json").stat().st_size == 200_000
    restore(out, "serve", tmp_path / "bare" / "serve")  # of which nothing came back
    assert not list((tmp_path / "bare" / "serve").iterdir())


def test_a_result_that_is_cut_short_loses_nothing(tmp_path: Path) -> None:
    folder, out = tmp_path / "piece", tmp_path / "out"
    folder.mkdir()
    returned = Returned(out, {"minutes": 9})
    returned.begin("fast", folder, ())
    for text, rows in (('{"rows": [1', None), ('{"rows": [1]}', [1]), ('{"rows": [1, 2', [1])):
        (folder / "result.json").write_text(text)
        assert returned.collect() == []
        found = json.loads((out / "loan.json").read_text())
        assert found["results"].get("fast", {}).get("rows") == rows
        assert returned.finished("fast")
    (folder / "result.json").write_text('{"rows": [], "finished": false}')
    returned.collect()
    assert not returned.finished("fast")


def test_findings_are_what_somebody_would_look_for() -> None:
    assert finding({"check": "words", "ok": True, "value": 0}) == ""
    assert finding({"check": "words", "ok": False, "value": 3}) == "FAILED words: 3"
    assert finding({"kernel": "gemm", "us": 1.0}) == ""
    row = {"chains": 100, "runner": "graphs", "us": 50.0, "ratio": 12.5, "peak_share": 0.31}
    assert finding(row) == "100 chains, graphs: 50.0 us, 12.5 times eager, 31.0% of the peak"
    training = {"what": "training", "natural": 0.81234, "updates": 20}
    assert finding(training) == "training: natural 0.8123, updates 20"
