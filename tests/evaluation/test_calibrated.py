import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from metastable import anomaly, benign, bundle, datasets
from metastable.evaluation import __main__ as command
from metastable.evaluation import calibrated


def images(n: int, seed: int) -> datasets.ImageSet:
    """Images smooth and rough, so that norms differ and changes move them."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(torch.rand(n, 3, 6, 6, generator=rng), (32, 32), mode="bilinear")
    rough = 0.2 * torch.rand(n, 1, 1, 1, generator=rng) * torch.randn(n, 3, 32, 32, generator=rng)
    pixels = (255 * (coarse + rough).clamp(0, 1)).to(torch.uint8)
    return datasets.ImageSet("smooth", "train", pixels, torch.zeros(n, dtype=torch.int64), [])


def calibration(
    loaded: bundle.Bundle, train: datasets.ImageSet, augment: tuple[str, ...] = (), seed: int = 0
) -> anomaly.Calibration:
    seen = calibrated.changed(train, augment=augment, seed=seed)
    return calibrated.of(loaded, seen, false_positive_rate=0.1)


@pytest.mark.slow
def test_changed_images_are_flagged_at_the_stated_rate_on_average(tiny: bundle.Bundle) -> None:
    rates = []
    names = ("noise4", "sharpened", "darker")
    for turn in range(12):
        found = calibration(tiny, images(120, turn), names, turn)
        mixture, _ = benign.mixed(images(200, 1000 + turn).images, names, seed=500 + turn)
        norms = anomaly.score_norms(datasets.to_float(mixture), tiny.scores["score"])
        rates.append(float(found.flags(norms).float().mean()))
    # Each of the twelve has a standard deviation of about 0.035, their mean one of 0.01.
    assert 0.06 < np.mean(rates) < 0.13


def test_the_evidence_says_what_was_included_and_repeats(tiny: bundle.Bundle) -> None:
    train = images(60, 0)
    found = calibration(tiny, train, ("blur", "jpeg50"), 2)
    assert set(found.changes) == {"clean", "blur", "jpeg50"}
    assert sum(found.changes.values()) == 60
    assert found.data["changes_seed"] == "2"
    assert found == calibration(tiny, train, ("blur", "jpeg50"), 2)
    assert found != calibration(tiny, train, ("blur", "jpeg50"), 3)
    plain = calibration(tiny, train)
    assert (plain.changes, set(plain.data)) == ({}, {"name", "split", "sha256"})


@pytest.fixture
def arguments(tiny_folder: Path, tmp_path: Path) -> list[str]:
    data = tmp_path / "cifar-10-batches-bin"
    data.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)]:
        records = rng.integers(0, 256, (30, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (data / name).write_bytes(records.tobytes())
    shutil.copytree(tiny_folder, tmp_path / "b")
    return ["x", "calibrate", "--bundle", str(tmp_path / "b"), "--data", str(tmp_path), "--n", "100"]


@pytest.mark.parametrize(("given", "names"), [([], benign.DEFAULT), (["blur,jpeg75"], ("blur", "jpeg75"))])
def test_the_command_keeps_the_changes_in_the_manifest(
    arguments: list[str], given: list[str], names: tuple[str, ...],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", [*arguments, "--clean-share", "0.25", "--augment", *given])
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    manifest = json.loads((Path(arguments[3]) / "bundle.json").read_text())
    assert manifest["anomaly"]["changes"] == printed["changes"]
    assert set(printed["changes"]) <= {"clean", *names}
    assert 10 <= printed["changes"]["clean"] <= 40
    loaded = bundle.load(Path(arguments[3])).anomaly
    assert loaded is not None
    assert loaded.changes == printed["changes"]


def test_the_command_refuses_a_change_that_is_none_and_leaves_the_bundle(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle.load(Path(arguments[3])).digest
    monkeypatch.setattr("sys.argv", [*arguments, "--augment", "blur,swirl"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("swirl", *benign.CHANGES))
    assert bundle.load(Path(arguments[3])).digest == before


@pytest.mark.slow
def test_the_command_sets_thresholds_of_shifts(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [*arguments, "--shift", "fast,softmax", "--shift-n", "40"])
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    loaded = bundle.load(Path(arguments[3]))
    assert {name: one.threshold for name, one in loaded.shifts.items()} == {
        name: one["threshold"] for name, one in printed["shifts"].items()
    }
    assert set(loaded.shifts) == {"fast", "softmax"}
    assert loaded.shifts["fast"].n == 40
    assert 0 < loaded.shifts["fast"].threshold <= 1
    train = datasets.load("cifar10", Path(arguments[5]), "train").take(40)
    monkeypatch.setattr("sys.argv", [*arguments[:-2], "--shift", "fast", "--shift-only", "--shift-n", "30"])
    command.main()
    after = bundle.load(Path(arguments[3]))
    assert (after.anomaly, list(after.shifts), after.shifts["fast"].n) == (
        loaded.anomaly,
        ["fast", "softmax"],
        30,
    )
    assert after.shifts["softmax"] == loaded.shifts["softmax"]
    again = calibrated.shift_of(loaded, "fast", calibrated.changed(train), false_positive_rate=0.05)
    # How many chains share a batch may differ, and so may the last bits.
    assert again.threshold == pytest.approx(loaded.shifts["fast"].threshold, rel=1e-4)
    assert (again.n, again.data) == (40, loaded.shifts["fast"].data)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--shift", "fast,none"], "the settings ['none'] do not purify"),
        (["--shift", "fost"], "there are no settings ['fost']"),
        (["--shift-only"], "--shift-only says nothing without --shift"),
    ],
)
def test_a_shift_that_cannot_be_set_is_refused(
    arguments: list[str], given: list[str], said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", [*arguments[:-2], *given])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_checks_its_rate_before_anything_else(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object) -> None:
        raise AssertionError("the images were read")

    monkeypatch.setattr(datasets, "load", unread)
    monkeypatch.setattr("sys.argv", [*arguments, "--false-positive-rate", "0.001"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert "cannot be set on 100 images" in capsys.readouterr().err
