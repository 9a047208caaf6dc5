"""What a new attack needs: one file, and one row of the table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loadtest import sets
from metastable import datasets
from metastable.attacks.ascent import Attacked, Best, Misclassify
from metastable.attacks.ball import Ball, Norm
from metastable.attacks.catalogue import ATTACKS, Entry, Options, plan
from metastable.attacks.target import Target, seeded
from metastable.bundle import Bundle
from metastable.cli import main
from tests.attacks.planted import Prototypes, box


@dataclass(frozen=True, kw_only=True)
class Shade:
    """An attack that the package does not have: the whole image lighter or darker, in some steps."""

    norm: Norm = "linf"
    eps: float = 8 / 255
    steps: int = 4

    @torch.no_grad()
    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """See metastable.attacks.ascent.Attack."""
        target, ball, goal = seeded(target, seed), Ball(self.norm, self.eps), Misclassify()
        rows, best = torch.arange(len(images), device=images.device), Best(images)
        for turn in range(1, self.steps + 1):
            for sign in (-1, 1):
                x = ball.project(images + sign * self.eps * turn / self.steps, images)
                best.update(rows, x, goal.strength(target(x), x, labels))
        return best.result


@pytest.fixture
def shade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "shade", Entry("none", Shade, ("steps",)))


@pytest.fixture
def natural(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that the bare classifier answers rightly."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(40, 216, (4, 3, 32, 32), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        labels = tiny.classifier(datasets.to_float(images)).argmax(1)
    found = datasets.ImageSet("noise", "test", images, labels, list(tiny.classes))
    monkeypatch.setattr(datasets, "load", lambda *_: found)


@pytest.mark.usefixtures("shade")
def test_a_plan_has_what_its_row_says() -> None:
    made = plan("shade", box(Prototypes(), steps=1), Options(eps=0.3, steps=2, samples=3, restarts=9))
    assert made.attack == Shade(eps=0.3, steps=2)
    assert (made.mode, made.samples, made.check) == ("none", 3, None)
    images, labels = Prototypes().images(4)
    found = made.attack(made.target, images, labels, seed=3)
    assert float((found.images - images).abs().amax()) <= 0.3 + 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("shade", "natural")
def test_one_class_and_one_row_are_a_row_of_robust_and_an_attack_set(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--bundle", str(tiny_folder), "--data", str(tmp_path), "--n", "4", "--steps", "2"]
    work = ["--work", str(tmp_path / "w"), "--samples", "2", "--eps", "16/255"]
    assert main(["evaluate", "robust", *shared, "--attack", "shade", "--settings", "none", *work]) == 0
    [row] = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (row["attack"], row["gradient"], row["n"], row["attacked"]) == ("shade", "none", 4, 4)
    assert row["parameters"] == "Shade(norm='linf', eps=0.06274509803921569, steps=2)"
    out = tmp_path / "shade.npz"
    assert (
        main(["loadtest", "make", *shared, "--attack", "shade", "--setting", "none", "--out", str(out)]) == 0
    )
    made = sets.load(out)
    assert made.about.attack == "shade"
    assert made.distances().max() == pytest.approx(8 / 255, abs=1e-6)


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no attack 'shade': choose from"):
        plan("shade", box(Prototypes(), steps=1), Options())
