import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import tune
from metastable import anomaly, bundle
from metastable.datasets import Folder
from metastable.datasets.folder import labeller_of
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import NoGradient
from metastable.evaluation import budget, kept

pytestmark = pytest.mark.slow

WANTED = tune.Wanted(
    budget_ms=1e9, keep=0.0, radius=Fraction(4, 255), radii=(Fraction(8, 255),), choose_n=4, judge_n=5
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SIGMAS", (0.1,))
    monkeypatch.setattr(kept, "STEPS", 2)
    monkeypatch.setattr(kept, "REPEATS", 1)


@pytest.fixture
def brought(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Folder]:
    """A bundle to tune, and 40 pictures."""
    folder = shutil.copytree(tiny_folder, tmp_path / "mine")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
            tmp_path / f"photos/{number}.png"
        )
    loaded = bundle.load(folder)
    return folder, Folder(
        path=tmp_path / "photos",
        shape=loaded.shape,
        labeller=labeller_of(loaded.classifier),
        names=tuple(loaded.classes),
        test_share=0.4,
    )


def test_thresholds_and_settings_of_some_pictures_judged_on_others(
    brought: tuple[Path, Folder], quick: None
) -> None:
    folder, pictures = brought
    before = bundle.load(folder)
    runner = TorchRunner(before.networks, before.classifier)
    found = tune.tune(folder, pictures.split("train"), WANTED, runner)
    made = bundle.load(folder)
    assert made.calibration.n == 24
    assert made.calibration.changes  # half of them are changed as honest users change them
    assert made.calibration.threshold != before.calibration.threshold
    assert made.settings.default == "balanced"
    assert made.settings["balanced"].chains == found["chosen"]["chains"]
    assert set(made.shifts) == {"fast", "balanced"}
    assert found["in_budget"]
    assert found["keeps"]
    assert not found["not_attacked"]
    judged = tune.judge(folder, pictures.split("test"), WANTED, runner)
    assert (judged["n"], judged["digest"]) == (5, made.digest)
    assert [row["setting"] for row in judged["rows"]] == ["none", "jpeg75", "jpeg50", "fast", "balanced"]
    assert judged["rows"][0]["kept"]["clean"][0] == 1.0  # nothing is done to them
    written = json.loads((folder / "report/report.json").read_text())
    assert written == judged
    page = (folder / "report/report.md").read_text()
    assert "kept, 8/255" in page
    assert "`balanced`" in page
    assert "does not know of the defense" in page
    assert {one.name for one in (folder / "report").iterdir()} == {
        *("report.md", "report.json", "report.png", "candidates.png", "candidates.json")
    }
    assert bundle.load(folder).digest == made.digest  # the report is no part of the bundle


def test_a_classifier_without_gradients_is_judged_and_the_report_says_so(
    brought: tuple[Path, Folder], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise NoGradient("its operator Whatever has no gradient")

    monkeypatch.setattr(kept, "attackable", refuses)
    folder, pictures = brought
    loaded = bundle.load(folder)
    runner = TorchRunner(loaded.networks, loaded.classifier)
    assert "Whatever" in tune.tune(folder, pictures.split("train"), WANTED, runner)["not_attacked"]
    judged = tune.judge(folder, pictures.split("test"), WANTED, runner)
    assert list(judged["rows"][0]["kept"]) == ["clean"]
    assert "Nothing was attacked: its operator Whatever" in (folder / "report/report.md").read_text()


def test_the_least_number_of_pictures_is_what_the_threshold_needs() -> None:
    least = tune.least(0.05)
    anomaly.check_rate(0.05, least)
    with pytest.raises(ValueError, match="false-positive rate"):
        anomaly.check_rate(0.05, least - 1)
