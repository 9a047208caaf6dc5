import dataclasses

import pytest
import torch

from metastable.attacks.annealed import Annealed
from metastable.attacks.ball import Ball
from metastable.attacks.detectors import Detector
from metastable.attacks.evasion import Evasion
from metastable.attacks.target import Eot
from tests.attacks.planted import Prototypes, box, score_network


def grid(x: torch.Tensor) -> torch.Tensor:
    return (255 * x).round() / 255


@pytest.mark.slow
def test_passes_the_flag_that_an_attack_on_the_label_alone_raises() -> None:
    model = Prototypes()
    images, labels = model.images(6, share=0.35)
    images = grid(images)
    score = score_network().score
    detector = Detector(score, 0.99 * float(Detector(score, 1.0).norms(images).min()))
    defense = dataclasses.replace(box(model, sigma=0.02), detectors=(detector,))
    target = Eot(defense, samples=2, gradient="exact")
    shared = {"eps": 0.08, "steps": 30, "samples": 2, "window": 4, "certain": 0.5}
    plain = Annealed(**shared)(target, images, labels)  # type: ignore[arg-type]
    aware = Evasion(statistics=(detector,), **shared)(target, images, labels)  # type: ignore[arg-type]
    assert plain.success.all()
    assert detector.flags(plain.images).float().mean() > 0.8
    assert aware.success.float().mean() > 0.8
    assert not detector.flags(aware.images[aware.success]).any()
    # With the reserve below the threshold, in 8 bits.
    assert (detector.norms(aware.images[aware.success]) <= 0.99 * detector.threshold + 1e-6).all()
    assert torch.equal(grid(aware.images), aware.images)


@pytest.mark.slow
def test_every_statistic_counts() -> None:
    model = Prototypes()
    images, labels = model.images(4, share=0.35)
    images = grid(images)
    first, second = score_network().score, score_network(seed=5).score
    detectors = tuple(
        Detector(score, 1.02 * float(Detector(score, 1.0).norms(images).max())) for score in (first, second)
    )
    strict = Detector(second, 1e-6)
    attack = Evasion(statistics=detectors, eps=0.1, steps=25, certain=0.3)
    both = attack(model, images, labels)
    assert both.success.all()
    assert not any(detector.flags(both.images).any() for detector in detectors)
    never = dataclasses.replace(attack, statistics=(detectors[0], strict))(model, images, labels)
    assert not never.success.any()
    # Where nothing passes, the image that is wrong by most comes back all the same.
    assert (model(never.images).argmax(1) != labels).all()


def test_wrong_and_unflagged_beats_wrong_and_flagged_beats_right() -> None:
    images = torch.full((3, 3, 8, 8), 0.5)
    score = score_network().score
    level = float(Detector(score, 1.0).norms(images)[0])
    rows = torch.arange(3)
    worth = {}
    for name, threshold in (("passes", 2 * level), ("flagged", 0.5 * level)):
        attack = Evasion(statistics=(Detector(score, threshold),))
        mover = attack._mover(images, Ball("linf", 0.1))
        worth[name] = mover.look(rows, images, torch.tensor([1.5, 0.2, -0.5]), torch.zeros(3, 4))
    assert torch.allclose(worth["passes"], torch.tensor([1.5, 0.2, -1.5]))
    flagged = worth["flagged"]
    assert (flagged[:2] < 0).all()
    assert flagged[0] > flagged[1] > flagged[2]


def test_a_multiplier_rises_above_its_threshold_and_falls_below_for_each_image_and_statistic() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.stack([torch.full((3, 8, 8), 0.5), torch.rand(3, 8, 8, generator=rng)])
    first, second = score_network().score, score_network(seed=5).score
    norms = Detector(first, 1.0).norms(images)
    detector = Detector(first, float(norms.mean()))
    over = detector.flags(images)
    attack = Evasion(statistics=(detector, Detector(second, 1e9)), rate=2.0)
    mover = attack._mover(images, Ball("linf", 0.1))
    rows, margin, logits = torch.arange(2), torch.ones(2), torch.zeros(2, 4)
    mover.look(rows, images, margin, logits)
    mover.look(rows[1:], images[1:], margin[1:], logits[1:])
    once, twice = (2.0 if flag else 0.5 for flag in over.tolist())
    assert over.any()
    assert not over.all()
    assert mover._multipliers.tolist() == [[once, twice**2], [0.5, 0.25]]  # type: ignore[attr-defined]
    # Both statistics pull: without the second one the image would go elsewhere.
    alone = Evasion(statistics=attack.statistics[:1], rate=2.0)._mover(images, Ball("linf", 0.1))
    alone.look(rows, images, margin, logits)
    assert not torch.allclose(alone._pull[0], mover._pull[0])  # type: ignore[attr-defined]


def test_chains_have_the_noise_of_images_that_pass_and_second_starts_are_near_the_image() -> None:
    detector = Detector(score_network().score, 1.0)
    attack = Evasion(statistics=(detector,), eps=0.08)
    attacked, _ = attack.on(Eot(box(Prototypes()), samples=1, gradient="exact"), 0)
    assert isinstance(attacked, Eot)
    assert attacked.levels == "unflagged"
    x = torch.full((2, 3, 8, 8), 0.5)
    start = attack._start(x, Ball("linf", 0.08), torch.Generator().manual_seed(0))
    assert 0.005 < (start - x).abs().max() <= 0.01 + 1e-6
