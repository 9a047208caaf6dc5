"""The commands on a folder of pictures, labelled and not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metastable import bundle
from metastable.cli import main
from metastable.datasets.folder import AGREEMENT, CLASSIFIER
from metastable.training.run import seen_by
from tests.training import harden_toys


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Thirty noisy pictures of many sizes, one of them damaged."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    for i in range(30):
        path = folder / ("more" if i % 2 else "") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(24, 60, 2)
        grain = rng.integers(0, 256, (height, width, 3))
        Image.fromarray((0.3 * grain + 6 * i).clip(0, 255).astype(np.uint8)).save(path)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return folder


def labels_of(folder: Path, names: list[str]) -> Path:
    """A CSV file that gives the pictures the classes in turn."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{file},{names[i % len(names)]}" for i, file in enumerate(files)]
    path = folder.parent / "labels.csv"
    path.write_text("\n".join(["file,label", *rows]))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[dict[str, Any], str, str]:
    """What a command prints last, what before, and what on stderr."""
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    *before, last = said.out.splitlines()
    return json.loads(last), "\n".join(before), said.err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    try:
        status: object = main([str(word) for word in words])
    except SystemExit as error:  # argparse's
        status = error.code
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_without_labels_agreement_is_measured_and_said(
    photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--bundle", tiny_folder, "--images", photos, "--test-share", 0.3)
    few = (*shared, "--n", 4)
    out = ("--out", tmp_path / "t.json")
    found, page, err = run(
        *(capsys, "evaluate", "table", *few, "--settings", "none", "--attack-steps", 1, *out),
        *("--work", tmp_path / "t"),
    )
    assert found["rows"][0]["accuracy"] == 1  # the bare classifier agrees with itself
    assert found["accuracy_is"] == AGREEMENT
    assert found["pictures"]["labels"] == CLASSIFIER
    about = found["pictures"]
    assert (about["images"], about["test_share"], about["pictures"]) == (4, 0.3, 31)
    assert AGREEMENT in page
    assert AGREEMENT in (tmp_path / "t.md").read_text()
    assert "photos has no labels" in err
    rows = ("--rows", "none:transfer", "--steps", 1, "--work", tmp_path / "r")
    found, page, _ = run(capsys, "evaluate", "robust", *few, *rows)
    assert found["rows"][0]["natural"][0] == 1
    assert found["accuracy_is"] == AGREEMENT
    assert AGREEMENT in page
    found, page, _ = run(
        capsys, "evaluate", "honest", *few, "--changes", "clean", "--judged", 2, "--settings", "none"
    )
    assert found["rows"][0]["right"]["none"][0] == 1
    assert AGREEMENT in page
    made = run(capsys, "loadtest", "make", *few, "--out", tmp_path / "clean.npz")[0]
    assert made["accuracy_is"] == AGREEMENT
    found = run(capsys, "evaluate", "latency", *shared[:4], "--settings", "none", "--rounds", 1)[0]
    assert found["rows"][0]["setting"] == "none"


@pytest.mark.slow
def test_with_labels_accuracy_is_measured(
    photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = bundle.load(tiny_folder).classes
    shared = ("--bundle", tiny_folder, "--images", photos, "--test-share", 1, "--settings", "none")
    given = ("--labels", labels_of(photos, names), "--n", 30, "--attack-steps", 1)
    found, page, err = run(capsys, "evaluate", "table", *shared, *given, "--work", tmp_path / "t")
    assert found["rows"][0]["accuracy"] < 0.5  # random weights
    assert "accuracy_is" not in found
    assert found["pictures"]["left_out"] == {"links": 0, "unlabelled": 1}
    assert AGREEMENT not in page + err


def test_calibration_keeps_how_its_images_came_to_be(
    photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    shared = ("calibrate", "--bundle", folder, "--images", photos, "--test-share", 0, "--split-seed", 3)
    found, _, err = run(capsys, *shared, "--crops", 2)
    assert found["n"] == 60
    assert "accuracy" not in json.dumps(found) + err
    assert found["pictures"]["labels"] == "none"
    assert found["pictures"]["skipped"] == 1
    assert found["pictures"]["skipped_files"].keys() == {"broken.jpg"}
    assert "skipped 1 pictures that cannot be read: broken.jpg (" in err
    kept = bundle.load(folder).anomaly
    assert kept is not None
    assert kept.n == 60
    assert kept.data["name"] == "photos"
    assert {k: kept.data[k] for k in ("skipped", "crops", "split_seed")} == {
        "skipped": "1",
        "crops": "2",
        "split_seed": "3",
    }


@pytest.mark.slow
def test_a_shift_is_measured_by_the_bare_classifier_and_says_so(
    photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    words = ("calibrate", "--bundle", folder, "--images", photos, "--shift", "fast", "--shift-only")
    found, _, err = run(capsys, *words, "--shift-n", 20)
    assert found["shifts"]["fast"]["n"] == 20
    assert f"a shift needs no labels: it is the lack of {AGREEMENT}" in err
    assert "accuracy" not in json.dumps(found) + err
    labels = labels_of(photos, bundle.load(folder).classes)
    assert "labels" not in run(capsys, *words, "--shift-n", 20, "--labels", labels)[2]


@pytest.mark.slow
def test_a_score_network_learns_of_windows_and_goes_on_with_the_same(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ("train", "score", "--images", photos, "--shape", "3x16x24", "--crops", 2, "--no-bf16")
    small = ("--widths", "4,4,4", "--updates", 2, "--batch", 4, "--device", "cpu", "--out", out)
    found = run(capsys, *words, *small)[0]
    assert found["test_n"] == found["pictures"]["images"] == 12
    kept = json.loads((out / "data.json").read_text())
    assert (kept["shape"], kept["crops"], kept["mirrored"]) == ([3, 16, 24], 2, True)
    assert seen_by(out).shape == (3, 16, 24)
    run(capsys, *words, *small)
    Image.new("RGB", (30, 30)).save(photos / "00.png")
    said = refused(capsys, *words, *small)
    assert "another configuration (dataset)" in said
    assert json.loads((out / "data.json").read_text()) == kept


@pytest.mark.slow
def test_hardening_for_stability_needs_no_labels_and_a_learning_classifier_does(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = harden_toys.write_bundle(tmp_path / "bundle")
    words = ("train", "harden", "--bundle", made, "--images", photos, "--no-bf16", "--device", "cpu")
    small = ("--batch", 4, "--updates", 1, "--held-out", 4, "--check-images", 4, "--check-steps", 1)
    out = ("--out", tmp_path / "run")
    found = run(capsys, *words, *small, "--mode", "stability", *out)[0]
    assert found["accuracy_is"] == AGREEMENT
    assert found["judged_on"] == "4 held-out training images"
    assert (tmp_path / "run" / "data.json").exists()
    said = refused(capsys, *words, *small, "--mode", "both", "--out", tmp_path / "no")
    assert "a classifier that learns needs labels: give --labels" in said
    said = refused(capsys, *words, "--batch", 4, "--mode", "stability", "--out", tmp_path / "no")
    assert "give a smaller --held-out" in said


def test_a_classifier_of_a_folder_becomes_a_bundle(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, csv = tmp_path / "run", labels_of(photos, ["night", "noon", "dusk"])
    words = ("train", "classifier", "--images", photos, "--labels", csv, "--shape", "1x16x16", "--no-bf16")
    run(capsys, *words, "--network", "cnn-4-4-4", "--batch", 8, "--epochs", 1, "--shift", 0, "--out", out)
    (tmp_path / "settings.yaml").write_text(harden_toys.SETTINGS)
    parts = ("--classifier", out, "--settings", tmp_path / "settings.yaml", "--name", "sky")
    run(capsys, "bundle", "build", *parts, "--out", tmp_path / "b")
    loaded = bundle.load(tmp_path / "b")
    assert (loaded.shape, list(loaded.classes)) == ((1, 16, 16), ["dusk", "night", "noon"])


@pytest.mark.slow
def test_eight_bits_are_calibrated_on_a_folder(
    photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--bundle", tiny_folder, "--images", photos, "--n", 4, "--only", "onnx")
    found = run(capsys, "export", "all", *shared, "--out", tmp_path / "a")[0]
    assert found["images"] == 4
    assert found["pictures"]["split"] == "test"


def test_what_does_not_fit_is_refused(
    photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = labels_of(photos, ["cat", "cow"])
    judged = ("evaluate", "table", "--bundle", tiny_folder, "--work", tmp_path / "w")
    assert "--labels says nothing without --images" in refused(capsys, *judged, "--labels", csv)
    said = refused(capsys, *judged, "--images", photos, "--labels", csv)
    assert "labels.csv, line 3: 'cow' is no class, neither a name nor a number from 0 to 9" in said
    assert "is not a folder of pictures" in refused(capsys, *judged, "--images", tmp_path / "none")
    trained = ("train", "harden", "--bundle", tiny_folder, "--images", photos, "--out", tmp_path / "r")
    assert "is for images of (3, 32, 32): leave out --shape" in refused(capsys, *trained, "--shape", "3x9x9")
