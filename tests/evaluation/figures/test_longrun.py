import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metastable import datasets
from metastable.evaluation import __main__ as command
from metastable.evaluation.figures import longrun


class Gaussian(nn.Module):
    """U = |x - 1/2|^2 / (2 s^2): chains of it forget where they began and stay."""

    scale = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).square().sum((1, 2, 3)) / (2 * self.scale**2)

    def score(self, x: Tensor) -> Tensor:
        return (0.5 - x) / self.scale**2


class Slope(nn.Module):
    """U = 10 sum x, which has no bottom."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x.sum((1, 2, 3))

    def score(self, x: Tensor) -> Tensor:
        return torch.full_like(x, -10.0)


def brightness(x: Tensor) -> Tensor:
    bright = x.mean((1, 2, 3))
    return torch.stack([0.5 - bright, bright - 0.5], 1)


def chains(network: nn.Module) -> list[dict[str, float]]:
    images = torch.full((60, 1, 4, 4), 0.5)
    classifier = nn.Module()
    classifier.forward = brightness
    rows, ends = longrun.course(
        network, classifier, images, torch.zeros(60).long(), tau=0.05, denoise=0.1, marks=[200, 5]
    )
    assert ends.shape == images.shape
    return rows


def test_chains_of_a_gaussian_stay() -> None:
    short, long = chains(Gaussian())
    assert (short["steps"], long["steps"]) == (5, 200)
    # 16 pixels of variance s^2 / (1 - a / 2) with a = tau^2 / (2 s^2), and s^2 of the images with noise.
    assert long["drift"] == pytest.approx(8 / (1 - 0.125 / 2) - 8, abs=1.5)
    assert abs(long["drift"]) < long["spread"]


def test_chains_of_a_slope_sink_and_lose_their_label() -> None:
    short, long = chains(Slope())
    assert long["drift"] < 10 * short["drift"] < 0
    assert abs(long["drift"]) > long["spread"]
    assert long["accuracy"] == 1.0  # all of them are dark
    assert long["pixel_max"] < 0.5


@pytest.mark.slow
def test_the_command_draws_course_and_ends(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    test = datasets.ImageSet("black", "test", images, torch.tensor([1, 2, 3]), [])
    monkeypatch.setattr(datasets, "load", lambda *_: test)
    out = tmp_path / "l.json"
    shared = ["--bundle", str(tiny_folder), "--data", str(tmp_path)]
    given = [*shared, "--n", "3", "--marks", "1,3", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["x", "figure", "longrun", *given])
    command.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["steps"] for row in rows] == [1, 3]
    assert out.with_suffix(".png").exists()
    assert (tmp_path / "l-samples.png").exists()
    monkeypatch.setattr("sys.argv", ["x", "figure", "longrun", *shared, "--tau", "2"])
    with pytest.raises(SystemExit):
        command.main()
