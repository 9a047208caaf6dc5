"""Attacks on a classifier that came as an ONNX graph: made on its conversion, judged on the graph."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from metastable import bundle, datasets
from metastable.attacks.white_box import attackable, white_box
from metastable.errors import DataError, NoGradient
from metastable.evaluation import __main__ as command
from metastable.evaluation import controls, robust, suite, table
from metastable.evaluation.groups import RobustConfig, planned
from metastable.evaluation.robust_rows import Row
from metastable.networks.onnx_classifier import OnnxClassifier
from metastable.networks.onnx_gradient import Differentiable
from tests.networks.brought import Separable, exported, seen, write_bundle

pytestmark = pytest.mark.slow

pytest.importorskip("onnx2fx")
CONFIG = RobustConfig(steps=2, samples=2, check=4, batch=4)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    graph = exported(seen(Separable(10), 32), 32)
    return write_bundle(tmp_path_factory.mktemp("brought") / "mine", tiny_folder, graph, size=32, to=32)


@pytest.fixture
def mine(folder: Path) -> bundle.Bundle:
    return bundle.load(folder)


@pytest.fixture
def test_set(mine: bundle.Bundle) -> datasets.ImageSet:
    """Noise, with the classifier's own labels."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=rng)
    labels = mine.classifier(datasets.to_float(images)).argmax(1)
    return datasets.ImageSet("noise", "test", images, labels, list(datasets.CIFAR10_CLASSES))


def test_the_suite_attacks_the_conversion_and_judges_the_graph(
    folder: Path, test_set: datasets.ImageSet, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(datasets, "load", lambda *_: test_set)
    asked = ["--bundle", str(folder), "--data", str(tmp_path), "--n", "4", "--steps", "3", "--samples", "2",
             "--attack", "suite", "--settings", "none,fast", "--eps", "64/255",
             "--work", str(tmp_path / "w")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["x", "robust", *asked])
    command.main()
    bare, fast = json.loads(capsys.readouterr().out.splitlines()[-1])["suites"]
    assert (bare["natural"][0], bare["worst_case"][0]) == (1, 0)
    assert bare["attacks"][0]["broken"] == 4  # by the gradient of the classifier alone
    assert [row["attack"] for row in fast["attacks"]] == list(suite.SUITE)
    assert fast["worst_case"][0] <= fast["natural"][0]


def test_its_gradient_is_known_and_its_answer_is_not(
    mine: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    images = datasets.to_float(test_set.images)
    known = attackable(mine, images)
    box = white_box(known, "fast")
    assert isinstance(box.classifier, Differentiable)
    assert not box.averages_mirrors
    assert isinstance(mine.classifier, OnnxClassifier)
    assert attackable(known, images) is known
    plans = {"annealed-ce": planned(known, "fast", "annealed-ce", CONFIG)}
    suite.check_same(plans, known, mine, "fast")
    with pytest.raises(DataError, match="another classifier"):
        suite.check_same(plans, mine, mine, "fast")
    with pytest.raises(NoGradient, match="differentiate its conversion"):
        white_box(mine, "none").classifier(images.requires_grad_(True))
    assert controls.agreement(mine, test_set, "fast") < 5


def test_rows_and_tables_attack_it_too(
    mine: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    strong = dataclasses.replace(CONFIG, eps=0.25, steps=4)
    [row] = robust.measure(mine, test_set, [Row("none", "transfer", 4)], strong, tmp_path / "rows")
    assert row["robust"][0] == 0
    config = table.TableConfig(("none",), len(test_set), 0, eps=0.25, step=0.1, steps=4)
    found = table.measure(mine, test_set, config, tmp_path / "table")
    assert [one["accuracy"] for one in found["rows"]] == [1, 0]


def test_images_of_other_classes_are_refused(
    folder: Path, test_set: datasets.ImageSet, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    more = dataclasses.replace(test_set, labels=test_set.labels + 10)
    monkeypatch.setattr(datasets, "load", lambda *_: more)
    asked = [
        "--bundle",
        str(folder),
        "--data",
        str(tmp_path),
        "--attack",
        "transfer",
        "--work",
        str(tmp_path / "w"),
    ]
    monkeypatch.setattr("sys.argv", ["x", "robust", *asked])
    with pytest.raises(SystemExit):
        command.main()
    assert "the bundle mine knows 10 classes, and noise has labels up to" in capsys.readouterr().err
