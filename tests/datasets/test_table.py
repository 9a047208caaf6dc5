"""What a new data set needs: one value, and one row of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import real_images
from metastable import bundle, datasets
from metastable.cli import main
from metastable.datasets import DATASETS, DataSet
from metastable.errors import DataError
from metastable.training.score import ScoreConfig, _batch

SETTINGS = """
default: fast
caps: {chains: 4, steps: 2}
settings:
  none: {dynamics: none}
  fast: {dynamics: adp, chains: 2, steps: 1, sigma: 0.1, step_fraction: 0.5}
"""


def read(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Stripes along rows, columns or a diagonal; the classes of a data set that the package does not have."""
    rng = np.random.default_rng(split == "test")
    labels = np.arange(60) % 3
    row, column = np.mgrid[:16, :16]
    waves = np.stack([np.sin(axis) for axis in (row, column, row + column)])[labels]
    images = 128 + 90 * waves[:, None] + rng.normal(0, 8, (60, 3, 16, 16))
    return images.clip(0, 255).astype(np.uint8), labels


STRIPES = DataSet(
    name="stripes",
    shape=(3, 16, 16),
    classes=("level", "upright", "slanted"),
    mirrored=False,
    inside="stripes",
    read=read,
)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What a command prints last."""
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_one_value_and_one_row_are_trained_judged_attacked_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "stripes", STRIPES)
    (tmp_path / "stripes").mkdir()
    data = ("--data", tmp_path, "--dataset", "stripes")
    train, settings, made = tmp_path / "runs", tmp_path / "settings.yaml", tmp_path / "bundle"
    settings.write_text(SETTINGS)
    few = ("--updates", 2, "--batch", 8, "--no-bf16", "--device", "cpu")
    run(capsys, "train", "score", *data, "--widths", "4,4,4", *few, "--out", train / "score")
    run(capsys, "train", "energy-dsm", *data, "--features", 2, *few, "--out", train / "energy")
    net = ("--network", "cnn-4-4-8", "--batch", 20, "--epochs", 1, "--no-bf16", "--device", "cpu")
    run(capsys, "train", "classifier", *data, *net, "--out", train / "f")
    parts = [f"--{part}={train / folder}" for part, folder in (("classifier", "f"), ("score", "score"))]
    parts += [f"--energy={train / 'energy'}", "--settings", settings, "--name", "stripes", "--out", made]
    run(capsys, "bundle", "build", *parts)
    loaded = bundle.load(made)
    assert (loaded.shape, tuple(loaded.classes)) == (STRIPES.shape, STRIPES.classes)
    run(capsys, "calibrate", "--bundle", made, *data, "--n", 40)
    judged = ("--bundle", made, *data, "--n", 6)
    table = run(capsys, "evaluate", "table", *judged, "--attack-steps", 1, "--work", tmp_path / "t")
    assert {row["setting"]: row["n"] for row in table["rows"]} == {"none": 6, "fast": 6}
    pairs = ("--rows", "fast:transfer", "--steps", 1, "--work", tmp_path / "r")
    assert run(capsys, "evaluate", "robust", *judged, *pairs)["rows"][0]["n"] == 6
    attacked = ("--attack", "transfer", "--setting", "fast", "--steps", 1, "--out", tmp_path / "a.npz")
    assert run(capsys, "loadtest", "make", *judged, *attacked)["n"] == 6
    hard = ("--bundle", made, "--held-out", 10, "--check-images", 4, "--check-steps", 1, "--updates", 1)
    run(capsys, "train", "harden", *data, *hard, "--batch", 8, "--no-bf16", "--out", tmp_path / "h")
    calibration, real = real_images.of_data(tmp_path, STRIPES.shape, 5)
    assert (calibration.shape, real.shape) == ((60, 3, 16, 16), (5, 3, 16, 16))
    assert run(capsys, "doctor", "--data", tmp_path, "--json")["data"]["stripes"]["train"] == 60


def test_another_name_or_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set 'cifar': use cifar10 or mnist"):
        datasets.load("cifar", tmp_path, "train")
    with pytest.raises(DataError, match="cifar10 has no split 'dev': use train or test"):
        datasets.load("cifar10", tmp_path, "dev")


@pytest.mark.parametrize("wrong", [np.zeros((3, 3, 16, 15), np.uint8), np.zeros((2, 3, 16, 16), np.uint8)])
def test_images_of_another_shape_than_the_row_says_are_refused(tmp_path: Path, wrong: np.ndarray) -> None:
    lying = DataSet(**{**vars(STRIPES), "read": lambda root, split: (wrong, np.arange(3))})
    with pytest.raises(DataError, match=r"stripes train .* is damaged"):
        lying.load(tmp_path, "train")


def test_only_what_is_not_mirrored_keeps_its_side(tmp_path: Path) -> None:
    """A batch of a data set whose row says so never sees a mirror image."""
    images = STRIPES.load(tmp_path, "train").images
    config = ScoreConfig(batch=32, sigma_min=1e-6, sigma_max=2e-6)
    for mirrored in (False, True):
        noisy, _, _ = _batch(images, config, 0, mirrored)
        flat = (255 * noisy).round().byte().flatten(1)
        known = {row.numpy().tobytes() for row in images.flatten(1)}
        unknown = sum(row.numpy().tobytes() not in known for row in flat)
        assert (unknown > 0) == mirrored
