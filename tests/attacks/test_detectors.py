import dataclasses

import pytest
import torch

from metastable.attacks.detectors import ShiftDetector
from metastable.attacks.evasion import Evasion
from metastable.attacks.target import Eot
from tests.attacks.planted import Prototypes, box


def test_the_shift_is_between_the_bare_classifier_and_the_answer() -> None:
    model = Prototypes()
    images, _ = model.images(4)
    detector = ShiftDetector(model, 0.5)
    assert torch.allclose(detector.values(images, model(images)), torch.zeros(4), atol=1e-6)
    certain = torch.full((4, 4), -50.0)
    certain[:, 0] = 50.0
    bare = model(images).softmax(1)
    assert torch.allclose(detector.values(images, certain), 1 - bare[:, 0], atol=1e-6)


def test_both_predictions_carry_a_gradient_where_the_logits_do() -> None:
    model = Prototypes()
    images = model.images(2)[0].requires_grad_(True)
    detector, other = ShiftDetector(model, 0.5), Prototypes(seed=3)
    whole = torch.autograd.grad(detector.values(images, other(images)).sum(), images)[0]
    bare = torch.autograd.grad(detector.values(images, other(images).detach()).sum(), images)[0]
    assert bare.abs().sum() > 0
    assert not torch.allclose(whole, bare)


@pytest.mark.slow
def test_an_attack_that_knows_the_shift_takes_the_bare_prediction_along() -> None:
    """The bare classifier is another network: an attack on the defense alone leaves its prediction behind."""
    model, bare = Prototypes(), Prototypes(seed=3)
    images, labels = model.images(8, share=0.35)
    detector = ShiftDetector(bare, 0.05)
    defense = dataclasses.replace(box(model, sigma=0.02), detectors=(), shift=detector)
    assert defense.statistics == (detector,)
    target = Eot(defense, samples=2, gradient="held")
    shared = {"eps": 0.2, "steps": 40, "samples": 2, "gradient": "held", "certain": 0.2}
    aware = Evasion(statistics=defense.statistics, **shared)(target, images, labels)  # type: ignore[arg-type]
    blind = Evasion(statistics=(), **shared)(target, images, labels)  # type: ignore[arg-type]
    with torch.no_grad():
        shifts = [detector.values(found.images, target(found.images)) for found in (blind, aware)]
    assert blind.success.all()
    assert shifts[1].mean() < shifts[0].mean()


def test_the_shift_chooses_no_noise() -> None:
    model = Prototypes()
    images, _ = model.images(4)
    defense = box(model, sigma=0.3, sigma_unflagged=0.0)
    always = dataclasses.replace(defense, shift=ShiftDetector(model, -1.0))
    assert torch.equal(always.flags(images), defense.flags(images))
