import dataclasses

import torch

from metastable.attacks.exact import Exact
from metastable.attacks.score_aware import ScoreAware
from metastable.attacks.target import Detector, Eot
from tests.attacks.planted import Prototypes, box, score_network


def test_passes_the_flag_that_an_attack_on_the_label_alone_raises() -> None:
    model = Prototypes()
    images, labels = model.images(6, share=0.35)
    score = score_network().score
    detector = Detector(score, 0.97 * float(Detector(score, 1.0).norms(images).min()))
    defense = dataclasses.replace(box(model, sigma=0.02), detector=detector)
    target = Eot(defense, samples=2, gradient="exact")
    shared = {"eps": 0.08, "step": 0.01, "steps": 30, "samples": 2, "check": 8}
    plain = Exact(**shared)(target, images, labels)  # type: ignore[arg-type]
    aware = ScoreAware(detector=detector, confidence=0.2, **shared)(target, images, labels)  # type: ignore[arg-type]
    assert plain.success.all()
    assert detector.flags(plain.images).float().mean() > 0.8
    assert aware.success.float().mean() > 0.8
    assert not detector.flags(aware.images[aware.success]).any()
    assert detector.norms(aware.images).mean() < detector.norms(plain.images).mean()


def test_success_needs_both() -> None:
    """A wrong label with the flag up is no success, and strength says by how much it fell short."""
    model = Prototypes()
    images, labels = model.images(4, share=0.45)
    strict = Detector(score_network().score, 1e-6)  # flags everything
    attack = ScoreAware(detector=strict, eps=0.1, step=0.02, steps=5, samples=1, check=2)
    result = attack(model, images, labels)
    assert (model(result.images).argmax(1) != labels).any()
    assert not result.success.any()
    assert torch.isfinite(result.strength).all()
