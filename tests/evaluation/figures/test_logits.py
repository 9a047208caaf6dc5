import json
import math
from pathlib import Path

import pytest
import torch

from metastable import bundle, datasets
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation.figures import logits


def test_realisations_are_means_of_disjoint_groups() -> None:
    outputs = torch.arange(14.0).view(7, 2)
    assert logits.realisations(outputs, 3).tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert torch.equal(logits.realisations(outputs, 1), outputs)
    with pytest.raises(DataError, match="no realisation of F_8"):
        logits.realisations(outputs, 8)


def test_their_error_falls_as_that_of_a_mean_does() -> None:
    """Margins of N(0.3, 1): F_H is wrong with the chance of a normal below -0.3 sqrt(H)."""
    rng = torch.Generator().manual_seed(0)
    margin = 0.3 + torch.randn(40_000, generator=rng)
    outputs = torch.stack([margin, torch.zeros(40_000)], 1)
    for h in (1, 10, 40):
        wrong = float((logits.realisations(outputs, h).argmax(1) == 1).float().mean())
        wanted = 0.5 * math.erfc(0.3 * math.sqrt(h) / math.sqrt(2))
        assert abs(wrong - wanted) < 4 * math.sqrt(wanted * (1 - wanted) * h / 40_000)


def test_the_borderline_image_leads_by_least_of_those_that_are_right() -> None:
    mean = torch.tensor([[5.0, 0, 0], [1, 0.9, 0], [0, 0.001, 0], [0, 3, 0], [0, 0, 2]])
    labels = torch.tensor([0, 0, 0, 1, 2])  # row 2 is wrong, though it leads by less
    assert logits.borderline_and_clear(mean, labels) == (1, 3)
    with pytest.raises(DataError, match="ask for more"):
        logits.borderline_and_clear(mean[:3], torch.tensor([0, 1, 2]))


def test_a_panel_is_of_the_true_class_and_the_one_that_threatens_it() -> None:
    outputs = torch.tensor([[0.0, 3, 1], [0, 1, 2], [0, 5, 3], [0, 1, 2]])
    found = logits.panel(outputs, 1, ["a", "b", "c"], [1, 2])
    assert found["classes"] == {"true": "b", "runner_up": "c"}
    assert found["mean"] == {"true": 2.5, "runner_up": 2.0}
    assert [(one["wrong"], one["realisations"]) for one in found["by_h"]] == [(0.5, 4), (0.0, 2)]
    assert found["by_h"][1]["true"] == [2.0, 3.0]
    assert logits.panel(outputs, 2, ["a", "b", "c"], [4])["classes"]["runner_up"] == "b"


@pytest.mark.slow
def test_the_command_draws_two_images(
    tiny: bundle.Bundle, tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=rng)
    found = logits.answers(tiny, datasets.to_float(images), tiny.settings["fast"], 0)
    test = datasets.ImageSet("noise", "test", images, found.labels, list(datasets.CIFAR10_CLASSES))
    monkeypatch.setattr(datasets, "load", lambda *_: test)
    out = tmp_path / "l.json"
    shared = ["--bundle", str(tiny_folder), "--data", str(tmp_path), "--out", str(out)]
    asked = ["--n", "4", "--screen", "3", "--chains", "6", "--h", "1,3"]
    monkeypatch.setattr("sys.argv", ["x", "figure", "logits", *shared, *asked])
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [image["kind"] for image in printed["images"]] == ["borderline", "clear"]
    assert [(one["H"], one["realisations"]) for one in printed["images"][0]["by_h"]] == [(1, 6), (3, 2)]
    assert out.with_suffix(".png").exists()
