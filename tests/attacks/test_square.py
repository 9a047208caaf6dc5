"""The Square attack, where the toolbox is installed."""

from __future__ import annotations

import dataclasses
import random
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metastable.attacks.ball import Norm
from metastable.attacks.pgd import Pgd
from metastable.attacks.square import Square
from metastable.attacks.target import Eot, WhiteBox
from metastable.errors import MissingPackage
from tests.attacks.planted import Prototypes, box


def test_without_the_toolbox_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "art" or n.startswith("art.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    model = Prototypes()
    with pytest.raises(MissingPackage, match=r"pip install adversarial-robustness-toolbox==1\.20\.1"):
        Square(steps=2)(model, *model.images(1))


class Blocks(nn.Module):
    """Logits -100 |mean colours of the quarters - prototype_c|^2 / 12, which large squares move."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = 0.3 + 0.4 * torch.rand(4, 12, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        quarters = F.avg_pool2d(x, x.shape[-1] // 2).flatten(1)
        return -100 * (quarters[:, None] - self.prototypes).square().mean(2)

    def images(self, n: int) -> tuple[Tensor, Tensor]:
        """Images [n, 3, 16, 16] somewhat nearer to their class than to another."""
        labels = torch.arange(n) % 4
        between = 0.55 * self.prototypes[labels] + 0.45 * self.prototypes[(labels + 1) % 4]
        return F.interpolate(between.view(n, 3, 2, 2), scale_factor=8), labels


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 3.0)])
def test_stays_in_the_ball_repeats_and_leaves_the_generators(norm: Norm, eps: float) -> None:
    pytest.importorskip("art")
    model = Blocks()
    images, labels = model.images(8)
    images[0] = images[0].round()  # at the borders of the range
    before, numpy_state, python_state = images.clone(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    attack = Square(norm=norm, eps=eps, steps=60)
    found = attack(model, images, labels, seed=1)
    assert torch.equal(images, before)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state
    assert found.success[1:].any()
    assert torch.equal(found.success, model(found.images).argmax(1) != labels)
    offset = (found.images - images).flatten(1)
    length = offset.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(offset, dim=1)
    assert length.max() <= eps + 1e-6
    assert 0 <= found.images.min() <= found.images.max() <= 1
    again = attack(model, images, labels, seed=1)
    assert torch.equal(again.images, found.images)
    assert torch.equal(again.strength, found.strength)


@pytest.mark.slow
def test_finds_what_pgd_finds_on_a_smooth_target() -> None:
    pytest.importorskip("art")
    model = Blocks()
    images, labels = model.images(8)
    pgd = Pgd(eps=0.06, step=0.015, steps=30)(model, images, labels)
    assert pgd.success.all()
    assert Square(eps=0.06, steps=150)(model, images, labels).success.all()


@pytest.mark.slow
def test_gets_through_noise_and_is_judged_by_other_chains() -> None:
    pytest.importorskip("art")
    model = Blocks()
    images, labels = model.images(4)
    target = Eot(box(model, dynamics="noise", steps=1, sigma=0.1), samples=1, gradient="bpda")
    found = Square(eps=0.08, steps=80, check=50)(target, images, labels, seed=2)
    assert found.success.all()
    judge = dataclasses.replace(target, samples=50, seed=99)
    assert (judge(found.images).argmax(1) != labels).all()


@pytest.mark.slow
def test_asks_with_its_own_number_of_chains_and_at_most_so_often() -> None:
    pytest.importorskip("art")
    model, drawn = Prototypes(), []

    def counting(x: Tensor) -> Tensor:
        drawn.append(len(x))
        return model(x)

    images, labels = model.images(2)
    defense: WhiteBox = box(counting)  # type: ignore[arg-type]
    Square(steps=10, samples=3, check=5)(Eot(defense, samples=7, gradient="bpda"), images, labels)
    assert drawn[0] == 3  # one image, to count the classes
    assert drawn[-1] in (5, 10)  # the judge, on images that moved
    assert sum(drawn[1:-1]) <= 2 * 3 * 2 * (10 + 1)


def test_a_lucky_query_does_not_end_an_image() -> None:
    """Answers are right but for one in four, which is far off: every image takes all its steps."""
    pytest.importorskip("art")
    calls = []

    def lucky(x: Tensor) -> Tensor:
        calls.append(len(x))
        wrong = float(len(calls) % 4 == 0)
        return torch.tensor([1.0, 0.0, 4.0 * wrong, 0.0]).expand(len(x), 4)

    images, labels = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    Square(steps=40, patience=8)(lucky, images, labels)
    assert len(calls) > 40


def test_options_and_images_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Square(steps=0)
    model = Prototypes()
    with pytest.raises(ValueError, match="at least 10 pixels"):
        Square(norm="l2")(model, *model.images(1))
