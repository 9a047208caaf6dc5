import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metastable import bundle, datasets
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation import groups, robust
from metastable.evaluation.figures import scores
from metastable.evaluation.robust_rows import Row


def test_the_curve_counts_what_lies_above_each_threshold() -> None:
    negatives, positives = scores.roc(np.array([1.0, 2.0]), np.array([2.0, 3.0, 3.0]))
    # Thresholds: none, 3, 2, 1.
    assert negatives.tolist() == [0, 0, 0.5, 1]
    assert np.allclose(positives, [0, 2 / 3, 1, 1])
    area = np.trapezoid(positives, negatives)
    assert area == pytest.approx((2 * 1 + 0.5 + 2 * 1 + 1) / 6)


def test_images_that_nobody_attacked_are_no_attacks() -> None:
    shared = {"setting": "s", "purified_score": 0.5}
    outcomes = [
        {**shared, "attack": "natural", "score": 1.0},
        {**shared, "attack": "pgd", "score": 1.0, "broken": True},
        {**shared, "attack": "pgd", "score": 2.0, "strength": 0.3},
        {**shared, "setting": "other", "attack": "natural", "score": 9.0},
    ]
    found = scores.norms(outcomes, "s")
    assert not scores.known(found, "pgd")
    assert {kind: values["raw"].tolist() for kind, values in found.items()} == {
        "natural": [1.0],
        "pgd": [2.0],
    }
    with pytest.raises(DataError, match="run `robust` first"):
        scores.norms(outcomes, "third")


def test_the_shift_is_reported_alone_and_together_with_the_norm() -> None:
    found = {
        "natural": {"raw": np.array([0.1, 0.2]), "shift": np.array([0.0, 0.3])},
        "pgd": {"raw": np.array([0.1, 0.9, 0.1, 0.1]), "shift": np.array([0.1, 0.1, 0.8, 0.9])},
    }
    said = scores.shift_detects(found, "pgd", 0.5, 0.6)
    assert said == {"auroc_shift": 0.75, "shift_rate": 0.5, "either_rate": 0.75}
    assert scores.shift_detects(found, "pgd", 0.5, None)["shift_rate"] is None
    assert scores.shift_detects(found, "natural", 0.5, 0.2)["either_rate"] == 0.5


@pytest.mark.slow
def test_the_command_draws_a_robust_run(
    tiny: bundle.Bundle, tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        labels = tiny.classifier(datasets.to_float(images)).argmax(1)
    test = datasets.ImageSet("noise", "test", images, labels, list(datasets.CIFAR10_CLASSES))
    config = groups.RobustConfig(steps=1)
    [row] = robust.measure(tiny, test, [Row("none", "transfer", 3)], config, tmp_path / "w")
    shared = ["--bundle", str(tiny_folder), "--work", str(tmp_path / "w"), "--out", str(tmp_path / "s.json")]
    monkeypatch.setattr("sys.argv", ["x", "figure", "scores", *shared, "--settings", "none"])
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["rows"][0]["auroc"] == row["auroc"]
    assert printed["rows"][0]["flag_rate"] == row["flag_rate"][0]
    assert printed["rows"][0]["shift_rate"] is None  # the bundle has no threshold
    assert 0 <= printed["rows"][0]["auroc_shift"] <= 1
    assert (tmp_path / "s.png").exists()


@pytest.mark.slow
def test_many_attacks_fill_rows_instead_of_one_wide_one(tmp_path: Path) -> None:
    kinds = {
        name: dict.fromkeys(("raw", "purified", "shift"), np.arange(3.0)) for name in ("natural", *"abcde")
    }
    scores.draw(kinds, 1.0, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width == round(110 * 3.4 * scores.COLUMNS)
        assert picture.height == round(110 * 3.4 * 2)
