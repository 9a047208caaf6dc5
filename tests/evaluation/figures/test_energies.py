import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metastable import datasets
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation.figures import energies


class Brightness(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sum(1)


def test_energies_are_the_networks_in_order_whatever_the_batch() -> None:
    images = torch.rand(7, 1, 4, 4)
    found = energies.energies(Brightness(), images, batch=3)
    assert np.allclose(found, images.sum((1, 2, 3)).numpy())


def test_the_summary_says_how_often_a_kind_lies_above_natural_images() -> None:
    found = {"natural": np.array([1.0, 2.0]), "noise": np.array([3.0, 1.5])}
    summary = energies.summarize(found)
    assert summary["noise"] == {"n": 2, "mean": 2.25, "std": 0.75, "above_natural": 0.75}
    assert summary["natural"]["above_natural"] == 0.5


@pytest.mark.slow
def test_the_command_compares_three_kinds(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    test = datasets.ImageSet("black", "test", images, torch.tensor([1, 2, 3]), [])
    monkeypatch.setattr(datasets, "load", lambda *_: test)
    out = tmp_path / "e.json"
    shared = ["--bundle", str(tiny_folder), "--data", str(tmp_path)]
    monkeypatch.setattr(
        "sys.argv", ["x", "figure", "energies", *shared, "--n", "3", "--steps", "1", "--out", str(out)]
    )
    command.main()
    kinds = json.loads(capsys.readouterr().out.splitlines()[-1])["kinds"]
    assert list(kinds) == ["natural", "adversarial", "noise"]
    assert kinds["natural"]["std"] == 0  # all of them black
    assert out.with_suffix(".png").exists()
    with pytest.raises(DataError, match="no energy network 'score'"):
        energies.energy_network({"score": Brightness()}, "score")
