"""AutoAttack's randomised version, where the library is installed."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from torch import Tensor

from metastable.attacks.auto import AutoRand
from metastable.attacks.ball import Norm
from metastable.attacks.pgd import Pgd
from metastable.attacks.target import Eot
from metastable.errors import MissingPackage
from tests.attacks.planted import Prototypes, box


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "adv_lib" or n.startswith("adv_lib.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    model = Prototypes()
    with pytest.raises(MissingPackage, match=r"pip install --no-deps adv-lib==0\.2\.8"):
        AutoRand()(model, *model.images(1))


def test_neither_plotting_nor_vision_packages_are_needed() -> None:
    pytest.importorskip("adv_lib")
    model = Prototypes()
    AutoRand(steps=1)(model, *model.images(1))
    assert not {"visdom", "torchvision"} & set(sys.modules)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.7)])
def test_finds_what_pgd_finds_on_a_smooth_target_inside_the_ball(norm: Norm, eps: float) -> None:
    pytest.importorskip("adv_lib")
    model = Prototypes(sharpness=200.0)
    images, labels = model.images(8, share=0.35)
    images[0] = images[0].round()
    before, state = images.clone(), torch.get_rng_state()
    found = AutoRand(norm=norm, eps=eps, steps=30)(model, images, labels, seed=1)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    pgd = Pgd(norm=norm, eps=eps, step=eps / 4, steps=30)(model, images, labels)
    assert 4 <= pgd.success.sum() <= 8
    assert (found.success >= pgd.success).all()
    assert (found.strength >= 0.9 * pgd.strength)[pgd.success].all()
    assert torch.equal(found.success, model(found.images).argmax(1) != labels)
    offset = (found.images - images).flatten(1)
    length = offset.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(offset, dim=1)
    assert length.max() <= eps + 1e-6
    assert 0 <= found.images.min() <= found.images.max() <= 1
    again = AutoRand(norm=norm, eps=eps, steps=30)(model, images, labels, seed=1)
    assert torch.equal(again.images, found.images)
    assert torch.equal(again.strength, found.strength)


def test_gets_through_noise_and_is_judged_by_other_chains() -> None:
    pytest.importorskip("adv_lib")
    images, labels = Prototypes().images(4, share=0.3)
    target = Eot(box(Prototypes(), steps=1, sigma=0.1), samples=1, gradient="exact")
    found = AutoRand(eps=0.12, steps=10, samples=4, check=50)(target, images, labels, seed=2)
    assert found.success.all()
    judge = dataclasses.replace(target, samples=50, seed=99)
    assert (judge(found.images).argmax(1) != labels).all()


def test_takes_twenty_chains_a_step_and_does_not_believe_luck() -> None:
    """A defense of pure chance: half of the estimates look like breaks, but no image is one."""
    pytest.importorskip("adv_lib")
    drawn, rng = [], torch.Generator().manual_seed(0)
    bias = torch.tensor([0.3, 0.0, 0.0, 0.0])

    def chance(x: Tensor) -> Tensor:
        drawn.append(len(x))
        return bias + torch.randn(len(x), 4, generator=rng) + 0 * x.sum((1, 2, 3))[:, None]

    images, labels = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)
    target = Eot(box(chance, dynamics="noise", steps=1, sigma=0.1), samples=3, gradient="bpda")  # type: ignore[arg-type]
    found = AutoRand(steps=6, check=2000)(target, images, labels)
    assert not found.success.any()
    # One image to count the classes; both losses with 1 + 6 points of 2 images; a judge for each.
    assert sum(drawn) == 20 + 2 * (7 * 2 * 20 + 2 * 2000)


def test_two_classes_have_no_ratio_and_options_are_checked() -> None:
    pytest.importorskip("adv_lib")
    model = Prototypes()
    images, _ = model.images(2)
    labels = torch.tensor([0, 1])
    found = AutoRand(eps=0.3, steps=10)(lambda x: model(x)[:, :2], images, labels)
    assert found.success.all()
    with pytest.raises(ValueError, match="1 or more"):
        AutoRand(steps=0)
