"""Targets: fresh noise, the two gradients, and what the exact one costs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from metastable.attacks.detectors import Detector
from metastable.attacks.target import Eot, seeded, straight_through
from metastable.defense import defend, purify
from tests.attacks.planted import Prototypes, box, gradient_of, score_network


@pytest.mark.slow
@pytest.mark.parametrize("average", ["logits", "softmax", "log_softmax"])
def test_is_the_reference_defense_with_the_attackers_own_seeds(average: str) -> None:
    model = Prototypes()
    defense = box(model, average=average, chains=3)
    images, _ = model.images(2)
    target = Eot(defense, samples=3, gradient="bpda", seed=4)
    taken: list[list[tuple[int, int]]] = []

    def spied(x: Tensor, keys: list[tuple[int, int]], flagged: Tensor) -> Tensor:
        taken.append(list(keys))
        return purify(x, keys, defense.setting, defense.score, flagged)[0]

    object.__setattr__(target, "_purify", spied)
    logits = target(images)
    [keys] = taken
    assert len({key for key, _ in keys}) == 1
    assert [chain for _, chain in keys] == list(range(6))
    # The same chains through the defense, one image at a time: image 1 has chains 3, 4 and 5.
    purified = purify(images.repeat_interleave(3, 0), keys, defense.setting, defense.score, torch.ones(6) > 0)
    outputs = model(purified[0]).view(2, 3, -1)
    wanted = {
        "logits": outputs.mean(1),
        "softmax": outputs.softmax(2).mean(1).log(),
        "log_softmax": outputs.log_softmax(2).mean(1),
    }[average]
    assert torch.allclose(logits, wanted, atol=1e-6)
    # And in law, the defense: means over many chains agree.
    many = dataclasses.replace(target, samples=400)(images)
    defended = defend(
        images,
        [1, 2],
        dataclasses.replace(defense.setting, chains=400),
        classifier=model,
        scores={"score": defense.score},
        flagged=torch.tensor([True, True]),
    )
    reference = defended.mean.log() if average == "softmax" else defended.mean
    assert torch.allclose(many, reference, atol=0.02)


def test_noise_is_fresh_in_every_call_and_repeats_with_the_seed() -> None:
    model = Prototypes()
    images, _ = model.images(2)
    target = Eot(box(model), samples=2, gradient="bpda", seed=1)
    first, second = target(images), target(images)
    assert not torch.equal(first, second)
    again = seeded(target, 1)
    assert torch.equal(again(images), first)
    assert torch.equal(again(images), second)
    assert not torch.equal(seeded(target, 2)(images), first)
    assert not torch.equal(dataclasses.replace(target, stream=1)(images), first)
    assert seeded(model, 1) is model


@pytest.mark.slow
def test_averaging_lowers_the_variance_of_outputs_and_gradients() -> None:
    model = Prototypes()
    images, labels = model.images(1)

    def spread(samples: int) -> float:
        target = Eot(box(model, sigma=0.2), samples=samples, gradient="exact", seed=0)
        gradients = torch.stack([gradient_of(target, images, labels) for _ in range(24)])
        return float(gradients.var(0).mean())

    assert spread(16) < spread(1) / 6  # a sixteenth, but for chance


@pytest.mark.slow
def test_pieces_do_not_change_outputs_or_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Prototypes()
    images, labels = model.images(3)
    for gradient in ("bpda", "exact"):
        target = Eot(box(model), samples=5, gradient=gradient, seed=1)  # type: ignore[arg-type]
        whole = gradient_of(target, images, labels)
        monkeypatch.setattr("metastable.attacks.target.CHAINS_AT_ONCE", 4)
        assert torch.allclose(gradient_of(seeded(target, 1), images, labels), whole, atol=1e-6)
        monkeypatch.undo()


def test_answers_come_with_the_mean_state_of_the_same_chains() -> None:
    """A linear classifier of the mean state says what the mean of its answers does."""
    images, _ = Prototypes().images(2)
    flat = torch.nn.Flatten()
    for gradient in ("bpda", "exact"):
        target = Eot(box(flat, sigma=0.2), samples=3, gradient=gradient)  # type: ignore[arg-type]
        logits, purified = target.answers(images.clone().requires_grad_(True))
        assert torch.allclose(logits, flat(purified), atol=1e-6)
        assert purified.requires_grad


def test_the_flag_of_the_attacked_image_chooses_its_noise() -> None:
    model = Prototypes()
    images, _ = model.images(3)
    score = score_network().score
    norms = Detector(score, 1.0).norms(images)
    detector = Detector(score, float(norms.median()))
    defense = dataclasses.replace(box(model, sigma=0.3, sigma_unflagged=0.0), detectors=(detector,))
    assert defense.flags(images).tolist() == (norms > norms.median()).tolist()
    target = Eot(defense, samples=1, gradient="bpda")
    changed = (target(images) != target(images)).any(1)
    assert changed.tolist() == defense.flags(images).tolist()
    assert dataclasses.replace(defense, detectors=()).flags(images).all()


def test_straight_through_is_exact_forward_and_identity_backward() -> None:
    model = Prototypes()
    images, labels = model.images(2)
    target = straight_through(lambda x: (x * 7).round() / 7, model)
    assert torch.equal(target(images), model((images * 7).round() / 7))
    assert gradient_of(target, images, labels).abs().sum() > 0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="samples must be"):
        Eot(box(Prototypes()), samples=0, gradient="exact")
