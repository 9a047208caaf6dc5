"""Gradients of targets: through the purified image, and exactly through the steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metastable.attacks.pgd import Pgd
from metastable.attacks.target import Eot, WhiteBox, seeded
from metastable.defense import purify
from metastable.dynamics.adp import adaptive_step_size, adp
from metastable.errors import NoGradient
from metastable.settings import Setting
from tests.attacks.planted import Prototypes, box, energy_network, gradient_of, restoring_score, score_network


def test_bpda_gives_the_purified_images_gradient_to_the_image() -> None:
    """Eq. 10 of Hill 2021, up to its factor 1/H."""
    model = Prototypes()
    defense = box(model)
    images, labels = model.images(1)
    target = Eot(defense, samples=3, gradient="bpda", seed=1)
    found = gradient_of(target, images, labels)
    states: list[Tensor] = []

    def remembering(x: Tensor) -> Tensor:
        states.append(x.detach())
        return model(x)

    seeded(dataclasses.replace(target, defense=dataclasses.replace(defense, classifier=remembering)), 1)(
        images
    )
    z = states[0].requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(z).mean(0, keepdim=True), labels)
    (wanted,) = torch.autograd.grad(loss, z)
    assert torch.allclose(found, wanted.sum(0, keepdim=True), atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"dynamics": "langevin", "steps": 5, "tau": 0.3, "eta": 0.5},
        {"dynamics": "malade", "steps": 5, "alpha": 0.1, "kick": 0.05, "average": "log_softmax"},
        {"dynamics": "adp", "steps": 3, "sigma": 0.05, "step_fraction": 0.5, "step_bounds": (1e-3, 2.0)},
        {"dynamics": "adp", "steps": 3, "sigma": 0.05, "step_bounds": (0.2, 0.2), "average": "softmax"},
    ],
    ids=["langevin", "malade", "adp-adaptive", "adp-fixed-softmax"],
)
def test_the_exact_gradient_agrees_with_finite_differences(fields: dict[str, object]) -> None:
    model = Prototypes().double()
    score = restoring_score(dtype=torch.float64)
    defense = dataclasses.replace(box(model, **fields), score=score)
    images, labels = model.images(1)
    images = images.double()
    alpha = adaptive_step_size(images, score(images), score, fraction=0.5, bounds=(1e-3, 2.0))
    assert 1e-2 < alpha < 1  # so that the adaptive case goes through the step size
    target = Eot(defense, samples=2, gradient="exact", seed=3)
    found = gradient_of(target, images, labels)

    def loss(x: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(seeded(target, 3)(x), labels))

    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        v = torch.randn(images.shape, generator=rng, dtype=torch.float64)
        h = 1e-6
        difference = (loss(images + h * v) - loss(images - h * v)) / (2 * h)
        assert math.isclose(difference, float((found * v).sum()), rel_tol=1e-4)
    bpda = gradient_of(dataclasses.replace(target, gradient="bpda"), images, labels)
    assert (found - bpda).norm() > 0.01 * bpda.norm()  # the test would otherwise show nothing


def test_the_exact_gradient_is_plain_autograd_through_the_steps() -> None:
    """Checkpointed or not, float64: the same number."""
    model, score = Prototypes().double(), score_network().double().score
    setting = Setting.of("long", "langevin", steps=7, tau=0.3)
    target = Eot(WhiteBox(setting, model, score), samples=1, gradient="exact", seed=3)
    images, labels = model.images(2)
    images = images.double()
    keys: list[Any] = []
    original = target._purify
    object.__setattr__(target, "_purify", lambda x, k, *rest: keys.append(k) or original(x, k, *rest))
    found = gradient_of(target, images, labels)
    x = images.clone().requires_grad_(True)
    walked, _ = purify(x, keys[0], setting, score, torch.ones(2) > 0)
    (wanted,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(model(walked), labels, reduction="sum"), x
    )
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("dynamics", "fields"),
    [
        ("langevin", {"steps": 7, "tau": 0.1, "eta": 0.7}),
        ("malade", {"steps": 40, "alpha": 0.1, "kick": 0.05}),
        ("adp", {"steps": 7, "sigma": 0.1, "step_bounds": (0.1, 1.0)}),
    ],
)
def test_segments_of_many_steps_are_the_defenses_chain(dynamics: str, fields: dict[str, object]) -> None:
    """With autograd on the steps go in segments; the noise of each step must stay that step's."""
    model = Prototypes()
    defense = box(model, dynamics=dynamics, **fields)
    images, _ = model.images(2)
    target = Eot(defense, samples=2, gradient="exact", seed=3)
    with torch.no_grad():
        whole = target(images)
    found = seeded(target, 3)(images.clone().requires_grad_(True))
    assert torch.allclose(found, whole, atol=1e-6)


def test_a_reconstruction_is_attacked_by_bpda_and_not_exactly() -> None:
    model = Prototypes()
    defense = box(model, dynamics="reconstruction", steps=1, walk=2, iterations=2)
    images, labels = model.images(1)
    with pytest.raises(NoGradient, match="use BPDA"):
        gradient_of(Eot(defense, samples=1, gradient="exact"), images, labels)
    assert gradient_of(Eot(defense, samples=1, gradient="bpda"), images, labels).norm() > 0


def test_held_differs_from_exact_by_the_step_sizes_alone() -> None:
    model = Prototypes()
    images, labels = model.images(2)
    adaptive, fixed = (
        dataclasses.replace(box(model, step_bounds=bounds), score=restoring_score())
        for bounds in ((1e-3, 2.0), (0.2, 0.2))
    )

    def gradients(defense: WhiteBox) -> list[Tensor]:
        targets = [Eot(defense, samples=2, gradient=mode, seed=1) for mode in ("exact", "held")]  # type: ignore[arg-type]
        assert torch.equal(targets[0](images), targets[1](images))
        return [gradient_of(target, images, labels) for target in targets]

    exact, held = gradients(adaptive)
    assert not torch.allclose(exact, held, rtol=1e-2)
    exact, held = gradients(fixed)
    assert torch.equal(exact, held)


def test_a_chain_that_stops_early_keeps_the_gradient_of_its_steps() -> None:
    model, score = Prototypes().double(), score_network().double().score
    images, labels = model.images(3)
    images = images.double()
    norms = [float(v) for v in score(images).flatten(1).norm(dim=1)]
    stop = sum(sorted(norms)[:2]) / 2  # some chains stop at once, some go on
    fields = {"steps": 3, "sigma": 0.0, "stop": stop, "step_bounds": (0.2, 0.2)}
    defense = dataclasses.replace(box(model, **fields), score=score)
    found = gradient_of(Eot(defense, samples=1, gradient="exact"), images, labels)
    for row in range(3):
        x = images[row : row + 1].clone().requires_grad_(True)
        out = adp(x, score, steps=3, bounds=(0.2, 0.2), stop=stop).x
        (wanted,) = torch.autograd.grad(
            torch.nn.functional.cross_entropy(model(out), labels[row : row + 1]), x
        )
        assert torch.allclose(found[row : row + 1], wanted, atol=1e-12)


def test_exact_pgd_is_plain_pgd_through_a_deterministic_defense() -> None:
    model = Prototypes()
    defense = dataclasses.replace(box(model, sigma=0.0, step_bounds=(1e-3, 2.0)), score=restoring_score())
    images, labels = model.images(4)

    def whole(x: Tensor) -> Tensor:
        return model(
            adp(x, defense.score, steps=2, lambda_=0.5, bounds=(1e-3, 2.0)).x,
        )

    attack = Pgd(eps=0.03, step=0.01, steps=5)
    exact = attack(Eot(defense, samples=1, gradient="exact"), images, labels, seed=1)
    plain = attack(whole, images, labels, seed=1)
    assert torch.allclose(exact.images, plain.images, atol=1e-6)
    assert torch.allclose(exact.strength, plain.strength, atol=1e-5)


def test_a_piecewise_linear_energy_gives_exact_nothing_that_bpda_lacks() -> None:
    """Its score is piecewise constant: known, documented, and the reason to run SPSA beside `exact`."""
    model = Prototypes()
    setting = Setting.of("e", "langevin", network="energy", steps=4, tau=0.05)
    target = Eot(WhiteBox(setting, model, energy_network().score), samples=2, gradient="exact", seed=1)
    images, labels = model.images(2)
    exact = gradient_of(target, images, labels)
    bpda = gradient_of(dataclasses.replace(target, gradient="bpda"), images, labels)
    assert torch.allclose(exact, bpda, atol=1e-7)
