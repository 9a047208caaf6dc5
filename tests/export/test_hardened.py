"""A bundle from a run of `harden` answers what the pipeline that was trained answers, for the same noise."""

import json
from pathlib import Path

import pytest
import torch

from export import __main__ as command
from export import hardened, runs
from metastable import bundle, datasets, defense, noise, settings
from metastable.dynamics.adp import Adp
from metastable.engine.local import engine_on
from metastable.errors import BundleError
from metastable.training import harden
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_parts import of_bundle
from metastable.training.harden_pipeline import Pipeline, TrainingWalk

pytestmark = pytest.mark.slow

SETTINGS = """
default: fast
caps: {chains: 16, steps: 20}
settings:
  none: {dynamics: none}
  fast: {dynamics: adp, network: purifier, chains: 6, steps: 1, sigma: 0.1, step_fraction: 1.0,
         step_bounds: [1.0, 1.0], stop: 0.0}
"""


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def load(name: str, root: Path, split: str) -> datasets.ImageSet:
        images = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(3))
        return datasets.ImageSet(name, split, images.byte(), torch.arange(40) % 10, datasets.CIFAR10_CLASSES)

    monkeypatch.setattr(datasets, "load", load)
    config = HardenConfig(
        bundle=str(tiny_folder),
        classifier="compact-4-6-8",
        updates=8,
        batch=16,
        lr=0.02,
        ema=0.5,
        held_out=8,
        check_steps=1,
        check_eot=1,
        bf16=False,
        copies=str(tmp_path / "copies"),
    )
    harden.train(config, tmp_path, tmp_path / "run", "cpu")
    return tmp_path / "run"


def test_the_bundle_answers_as_the_pipeline(
    run: Path,
    tmp_path: Path,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    arguments = ["--run", str(run.parent / "copies"), "--base", str(tiny_folder), "--name", "hard"]
    arguments += ["--settings", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "made")]
    monkeypatch.setattr("sys.argv", ["x", "harden", *arguments])
    command.main()
    said = json.loads(capsys.readouterr().out)
    assert set(said["bytes"]) == {"classifier", "purifier", "score"}
    made, base = bundle.load(tmp_path / "made"), bundle.load(tiny_folder)
    assert made.parts["score"] == base.parts["score"]
    assert made.anomaly == base.anomaly
    assert made.name == "hard"
    again = hardened.build(run, tiny_folder, tmp_path / "settings.yaml", "hard", tmp_path / "again")
    assert again == said["bytes"]

    parts = {name: of_bundle(tmp_path / "made", name) for name in ("purifier", "classifier")}
    trained = Pipeline(
        parts["classifier"].network, parts["purifier"].network, TrainingWalk(sigma=0.1), ("classifier",)
    )
    images, setting = torch.rand(5, 3, 32, 32), made.settings["fast"]
    seeds = [11, 12, 13, 14, 15]
    wanted = []
    with torch.inference_mode():
        for image, seed in zip(images, seeds, strict=True):
            keys = [(seed, chain) for chain in range(setting.chains)]
            z = noise.normal(keys, 0, (3, 32, 32), torch.device("cpu")).float()
            logits, _ = trained(image.expand(setting.chains, 3, 32, 32), z.unsqueeze(0))
            wanted.append(logits.mean(0))
    pipeline = torch.stack(wanted)
    flagged = torch.tensor([True, False, True, False, True])
    reference = defense.defend(
        images, seeds, setting, classifier=made.classifier, scores=made.scores, flagged=flagged
    )
    assert torch.allclose(reference.mean, pipeline, atol=1e-4)
    assert torch.equal(reference.labels, pipeline.argmax(1))
    answers = engine_on("cpu", made).answer(images, seeds, setting, flagged)
    for answer, logits in zip(answers, pipeline, strict=True):
        assert torch.allclose(answer.result.mean[0], logits, atol=1e-4)
        assert int(answer.result.labels[0]) == int(logits.argmax())


def test_the_shipped_settings_make_one_evaluation_and_spare_no_image(root: Path) -> None:
    shipped = settings.load(root / "model_store" / "hardened-settings.yaml")
    assert shipped.names == ("none", "fast", "balanced", "accurate")
    for name in shipped.names[1:]:
        one = shipped[name]
        moves = one.dynamics
        assert isinstance(moves, Adp)
        assert (moves.network, moves.steps, moves.sigma) == ("purifier", 1, 0.05)
        assert (moves.step_fraction, moves.step_bounds, moves.stop) == (1.0, (1.0, 1.0), 0.0)
        assert moves.sigma_unflagged is None


def test_a_part_of_the_run_builds_an_ordinary_bundle_too(run: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    folders = {"classifier": run / "classifier", "purifier": run / "purifier"}
    runs.build(folders, tmp_path / "settings.yaml", "hard", tmp_path / "made")
    made = bundle.load(tmp_path / "made")
    assert set(made.networks) == {"purifier"}
    assert made.parts["purifier"] == hardened.stored(run, made.shape)["purifier"].part.sha256


def test_what_is_no_run_is_refused(tmp_path: Path, tiny_folder: Path, run: Path) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    with pytest.raises(BundleError, match=r"parts\.json is missing"):
        hardened.build(tmp_path, tiny_folder, tmp_path / "settings.yaml", "x", tmp_path / "made")
    with pytest.raises(BundleError, match="folder of its own"):
        hardened.build(run, tiny_folder, tmp_path / "settings.yaml", "x", tiny_folder)
    (run / "parts.json").write_text(json.dumps({"classifier": {"architecture": "Eval", "arguments": {}}}))
    with pytest.raises(BundleError, match="architecture"):
        hardened.build(run, tiny_folder, tmp_path / "settings.yaml", "x", tmp_path / "made")
