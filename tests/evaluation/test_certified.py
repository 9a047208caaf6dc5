import json
import sys
from pathlib import Path

import pytest
import torch

from metastable import datasets
from metastable.evaluation import __main__ as command
from metastable.evaluation.certified import certified_accuracy, median_heuristic


def test_the_heuristic_by_hand() -> None:
    images = torch.zeros(3, 1, 2, 2)
    images[1], images[2] = 0.5, 1.0  # distances 1, 2 and 1 in four dimensions
    assert median_heuristic(images) == pytest.approx(1.0 / 2)
    with pytest.raises(ValueError, match="two images"):
        median_heuristic(images[:1])


def test_the_heuristic_finds_the_scale_of_gaussian_data() -> None:
    """Two draws of N(0, s^2) are about s sqrt(2 D) apart."""
    images = 0.2 * torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert median_heuristic(images) == pytest.approx(0.2 * 2**0.5, rel=0.02)


def test_certified_accuracy_counts_true_labels_that_reach_the_radius() -> None:
    outcomes = [
        {"label": 1, "predicted": 1, "radius": 0.5},
        {"label": 1, "predicted": 1, "radius": 0.2},
        {"label": 1, "predicted": 2, "radius": 0.9},
        {"label": 1, "predicted": -1, "radius": 0.0},
    ]
    assert certified_accuracy(outcomes, 0.0)[0] == 0.5
    assert certified_accuracy(outcomes, 0.4)[0] == 0.25
    share, low, high = certified_accuracy(outcomes, 0.6)
    assert (share, low) == (0.0, 0.0)
    assert 0 < high < 0.6


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, root: Path, split: str) -> datasets.ImageSet:
        rng = torch.Generator().manual_seed(len(split))
        pixels = torch.randint(0, 256, (6, 3, 32, 32), generator=rng).to(torch.uint8)
        return datasets.ImageSet(name, split, pixels, torch.arange(6), datasets.CIFAR10_CLASSES)

    monkeypatch.setattr(datasets, "load", load)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", ["evaluation", *args])
    command.main()
    line: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


SETTINGS = """
default: smooth
caps: {chains: 8, steps: 8}
settings:
  smooth: {dynamics: adp, chains: 2, steps: 1, sigma: 0.2}
  noise: {dynamics: noise, chains: 2, steps: 1, sigma: 0.1}
  flagged: {dynamics: noise, chains: 2, steps: 1, sigma: 0.1, sigma_unflagged: 0.05}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_the_command_resumes_and_refuses_what_has_no_certificate(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    given = [
        *("certify", "--bundle", str(tiny_folder), "--data", str(tmp_path)),
        *("--settings-file", str(tmp_path / "settings.yaml"), "--work", str(tmp_path / "work")),
        *("--n", "2", "--choose", "5", "--chains", "20", "--radii", "0,0.1"),
    ]
    chosen = [*given, "--settings", "smooth,noise", "--out", str(tmp_path / "out.json")]
    first = run(monkeypatch, capsys, *chosen)
    path = tmp_path / "work" / "outcomes.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    path.write_text("\n".join(lines[:3]) + "\n")
    assert run(monkeypatch, capsys, *chosen) == first
    assert path.read_text().splitlines() == lines
    assert [row["sigma"] for row in first["rows"]] == [0.2, 0.1]  # type: ignore[attr-defined]
    assert (tmp_path / "out.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, *given, "--settings", "flagged")
    assert "leave sigma_unflagged out" in capsys.readouterr().err


@pytest.mark.usefixtures("images")
def test_the_heuristic_as_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(monkeypatch, capsys, "sigma", "--data", str(tmp_path), "--n", "6")
    train = datasets.load("cifar10", tmp_path, "train").take(6)
    assert found["sigma"] == pytest.approx(median_heuristic(datasets.to_float(train.images)), abs=1e-5)
