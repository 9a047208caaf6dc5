import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import harden
from metastable.training import harden_session
from metastable.training.run import Paused


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One file of training images, and test images, of noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, count in (("data_batch_2.bin", 60), ("test_batch.bin", 10)):
        records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / name).write_bytes(records.tobytes())
    return tmp_path / "data"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--device", "cpu", "--tiny"])
    harden.main()


@pytest.mark.slow
def test_speeds_that_fail_do_not_stop_the_others(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = harden.measure
    monkeypatch.setattr(
        harden,
        "_apart",
        lambda row, *rest: broken(row) or measured(**row, root=data, device="cpu", tiny=True),
    )

    def broken(row: dict[str, object]) -> dict[str, object]:
        return {"failed": "no memory"} if row["way"] == "eager" else {}

    run(monkeypatch, "speed", "--data", str(data), "--out", str(tmp_path / "out"))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = result["rows"]
    assert result["finished"]
    assert [row["way"] for row in rows] == ["eager", "graph", "compile"]
    assert rows[0]["failed"] == "no memory"
    assert all(row["ms_an_update"] > 0 for row in rows[1:])


@pytest.mark.slow
def test_it_trains_resumes_and_judges(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "out", tmp_path / "run"
    given = ["train", "--data", str(data), "--out", str(out), "--run", str(folder), "--minutes", "0.8"]
    monkeypatch.setattr(sys, "argv", ["x", *given, "--device", "cpu", "--tiny", "--", "--sigma", "0.05"])
    harden.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    training, test = said["rows"]
    assert said["finished"]
    assert training["updates"] >= 1
    assert test["test images"] == 8
    assert {path.name for path in out.iterdir()} == {
        *("purifier.fp16.safetensors", "classifier.fp16.safetensors", "parts.json", "log.jsonl"),
        *("health.png", "metrics.json", "result.json"),
    }
    assert json.loads((folder / "config.json").read_text())["sigma"] == 0.05
    harden.main()  # the finished run is judged again, not trained again
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["rows"][0]["updates"] == training["updates"]


@pytest.mark.slow
def test_a_training_that_is_paused_says_so_and_is_judged(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["train", "--data", str(data), "--out", str(tmp_path / "out"), "--run", str(tmp_path / "run")]

    def paused(*_: object, **__: object) -> None:
        session = harden_session.begin(harden.flags([], tmp_path / "out", tiny=True), data, tmp_path, "cpu")
        session.put()
        raise Paused("the sitting is over")

    monkeypatch.setattr(harden.harden, "train", paused)
    run(monkeypatch, *given)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert not result["finished"]
    assert result["rows"][0] == {"what": "training", "paused": "the sitting is over"}
    assert result["rows"][1]["test images"] == 8


def test_the_flags_of_the_trainer_are_taken(tmp_path: Path) -> None:
    config = harden.flags(["--batch", "256", "--no-graph", "--mode", "purifier"], tmp_path, tiny=False)
    assert (config.batch, config.graph, config.mode, config.attack_steps) == (256, False, "purifier", 7)
    assert config.copies == str(tmp_path)


def test_compiling_must_pay_for_itself(tmp_path: Path) -> None:
    config = harden.flags([], tmp_path, tiny=False)
    row = {"classifier": config.classifier, "batch": config.batch}
    rows = [
        {**row, "way": "graph", "ready_s": 10, "images_a_second": 1000},
        {**row, "way": "compile", "ready_s": 70, "images_a_second": 1250},
    ]
    assert harden.compiles(rows, config, 400)
    assert not harden.compiles(rows, config, 200)
    assert not harden.compiles(rows[1:], config, 400)
    assert not harden.compiles([rows[0], {**row, "way": "compile", "failed": "x"}], config, 400)
    assert harden.candidates("wrn-28-2:graph:64,compact-4-4-4:eager:8", tiny=True) == [
        ("wrn-28-2", "graph", 64),
        ("compact-4-4-4", "eager", 8),
    ]
