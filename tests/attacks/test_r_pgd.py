import dataclasses

import pytest
import torch
from torch.nn import functional as F

from metastable.attacks.pgd import Pgd
from metastable.attacks.r_pgd import RPgd
from metastable.attacks.target import Eot
from tests.attacks.planted import Prototypes, box


def test_finds_wrong_images_that_the_purification_leaves_alone() -> None:
    model = Prototypes()
    defense = dataclasses.replace(box(model, sigma=0.0), score=lambda x: F.avg_pool2d(x, 3, 1, 1) - x)
    target = Eot(defense, samples=1, gradient="exact")
    images, labels = model.images(4, share=0.35)
    shared = {"eps": 0.08, "step": 0.01, "steps": 15}

    def moved(x: torch.Tensor) -> float:
        return float((target.purified(x) - x).norm())

    plain = Pgd(**shared)(target, images, labels)  # type: ignore[arg-type]
    weighed = RPgd(**shared)(target, images, labels)  # type: ignore[arg-type]
    heavy = RPgd(weight=100.0, **shared)(target, images, labels)  # type: ignore[arg-type]
    assert weighed.success.float().mean() >= 0.75
    assert moved(heavy.images) < moved(weighed.images) < moved(plain.images)


def test_without_the_regularisation_it_is_pgd() -> None:
    model = Prototypes()
    target = Eot(box(model), samples=2, gradient="exact")
    images, labels = model.images(2)
    found = RPgd(weight=0.0, steps=3)(target, images, labels)
    assert torch.equal(found.images, Pgd(steps=3)(target, images, labels).images)
    with pytest.raises(TypeError, match="Eot"):
        RPgd(steps=1)(model, images, labels)
