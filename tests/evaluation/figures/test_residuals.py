import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metastable import datasets
from metastable.attacks.ball import Ball
from metastable.evaluation import __main__ as command
from metastable.evaluation.figures import residuals
from tests.attacks.planted import Prototypes, box


def test_the_correlation_is_pearsons_of_every_image() -> None:
    a, b = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    found = residuals.pearson(a, b)
    wanted = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert np.allclose(found, wanted)
    assert torch.allclose(residuals.pearson(a, 2 * a + 1), torch.ones(3, dtype=torch.float64))
    assert residuals.pearson(a, torch.ones_like(a)).tolist() == [0, 0, 0]


def test_a_defense_that_does_nothing_leaves_the_attack_and_noise_hides_it() -> None:
    model = Prototypes()
    images, labels = model.images(3)
    idle = box(model, dynamics="langevin", steps=1, tau=1e-6)
    shared = {"ball": Ball("linf", 0.05), "step": 0.02, "steps": 4, "samples": 1, "seed": 0}
    kept = residuals.correlations(idle, images, labels, **shared)  # type: ignore[arg-type]
    assert kept.shape == (4, 3)
    assert float(kept.min()) > 0.999
    loud = dataclasses.replace(idle, setting=idle.setting.moving(tau=0.5))
    hidden = residuals.correlations(loud, images, labels, **shared)  # type: ignore[arg-type]
    assert float(hidden.abs().max()) < 0.4


@pytest.mark.slow
def test_the_command_follows_every_step_size(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    test = datasets.ImageSet("noise", "test", images, torch.tensor([1, 2, 3]), [])
    monkeypatch.setattr(datasets, "load", lambda *_: test)
    out = tmp_path / "r.json"
    shared = ["--bundle", str(tiny_folder), "--data", str(tmp_path), "--settings", "fast", "--out", str(out)]
    asked = ["--n", "3", "--batch", "2", "--steps", "2", "--samples", "1", "--step-sizes", "0.5/255,2/255"]
    monkeypatch.setattr("sys.argv", ["x", "figure", "residuals", *shared, *asked])
    command.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["step"], row["n"], len(row["mean"])) for row in rows] == [(0.5 / 255, 3, 2), (2 / 255, 3, 2)]
    assert out.with_suffix(".png").exists()
