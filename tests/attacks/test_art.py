"""Against the Adversarial Robustness Toolbox, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from metastable import bundle, datasets
from metastable.attacks import art
from metastable.attacks.art import Art
from metastable.attacks.pgd import Pgd
from metastable.errors import MissingPackage
from metastable.images import decode
from tests.attacks.planted import Prototypes

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def test_without_the_toolbox_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "art" or n.startswith("art.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    model = Prototypes()
    images, labels = model.images(1)
    with pytest.raises(MissingPackage, match=r"pip install adversarial-robustness-toolbox==1\.20\.1"):
        Art(name="boundary")(model, images, labels)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", 1 / 255, 0.25 / 255), ("l2", 0.08, 0.02)])
def test_our_pgd_agrees_with_the_toolboxs_on_the_shipped_classifier(
    shipped: Path, norm: str, eps: float, step: float
) -> None:
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    model = bundle.load(shipped).classifier
    clean = torch.stack(
        [decode((SAMPLES / f"{n}.png").read_bytes()).pixels for n in datasets.CIFAR10_CLASSES]
    )
    images, labels = torch.cat([clean, clean.flip(3)]), torch.arange(10).repeat(2)
    ours = Pgd(norm=norm, eps=eps, step=step, steps=5, random_start=False)(model, images, labels)  # type: ignore[arg-type]
    attack = ProjectedGradientDescentPyTorch(
        art.classifier(model, images, 10),
        norm="inf" if norm == "linf" else 2,
        eps=eps,
        eps_step=step,
        max_iter=5,
        batch_size=20,
        verbose=False,
    )
    theirs = torch.from_numpy(attack.generate(images.numpy(), y=labels.numpy()))

    def loss(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(x), labels, reduction="none")

    assert loss(ours.images).mean() > loss(images).mean() + 0.1
    # Ours keeps the best iterate and theirs the last, so ours is as strong or a little stronger.
    ratio = float(loss(ours.images).mean() / loss(theirs).mean())
    assert 0.98 < ratio < 1.1
    wrong = [(model(x).argmax(1) != labels).sum().item() for x in (ours.images, theirs)]
    assert abs(wrong[0] - wrong[1]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["carlini-wagner", "ead", "boundary"])
def test_the_toolboxs_attacks_succeed_inside_a_ball_that_is_large_enough(name: str) -> None:
    pytest.importorskip("art")
    model = Prototypes(sharpness=200.0)
    images, labels = model.images(4, share=0.4)
    result = Art(name=name, norm="l2", eps=2.5, steps=30)(model, images, labels)  # type: ignore[arg-type]
    assert result.success.float().mean() >= 0.75
    assert (model(result.images).argmax(1) != labels)[result.success].all()
