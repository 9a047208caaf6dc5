import dataclasses

import pytest
import torch

from metastable.attacks.aimed import Aimed
from metastable.attacks.detectors import Detector
from metastable.attacks.exact import Exact
from metastable.attacks.score_aware import ScoreAware
from metastable.attacks.target import Eot
from tests.attacks.planted import Prototypes, box, score_network


@pytest.mark.slow
def test_passes_the_flag_that_an_attack_on_the_label_alone_raises() -> None:
    model = Prototypes()
    images, labels = model.images(6, share=0.35)
    score = score_network().score
    detector = Detector(score, 0.97 * float(Detector(score, 1.0).norms(images).min()))
    defense = dataclasses.replace(box(model, sigma=0.02), detectors=(detector,))
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


def test_the_targeted_one_aims_at_the_runner_up_with_confidence_and_passes_the_flag() -> None:
    model = Prototypes()
    images, labels = model.images(4, share=0.35)
    score = score_network().score
    detector = Detector(score, 1.02 * float(Detector(score, 1.0).norms(images).max()))
    aims = model(images).scatter(1, labels[:, None], -torch.inf).argmax(1)
    shared = {"eps": 0.15, "step": 0.02, "steps": 30, "samples": 1, "check": 1, "detector": detector}
    margins = []
    for confidence in (0.05, 1.0):
        inner = ScoreAware(targeted=True, confidence=confidence, **shared)  # type: ignore[arg-type]
        result = Aimed(attack=inner)(model, images, labels, seed=2)
        assert result.success.all()
        logits = model(result.images)
        assert torch.equal(logits.argmax(1), aims)
        assert not detector.flags(result.images).any()
        margins.append(inner._goal().strength(logits, result.images, aims).mean())
    assert margins[1] > margins[0]
