"""One table of cases: what holds of every attack, whatever it does inside."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch
from torch import Tensor

from metastable.attacks.ball import Ball, Norm
from metastable.attacks.catalogue import ATTACKS, Options, Plan, plan
from metastable.attacks.pgd import Pgd
from metastable.attacks.spsa import Spsa
from metastable.attacks.target import Eot, seeded
from tests.attacks.planted import Prototypes, box

PACKAGES = {
    **dict.fromkeys(("carlini-wagner", "ead", "boundary", "square"), "art"),
    "autoattack-rand": "adv_lib",
}
"""The optional package of an attack."""


def _needs(name: str) -> list[pytest.MarkDecorator]:
    missing = name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None
    return [pytest.mark.skipif(missing, reason="its package is optional")]


CASES = [
    pytest.param(name, norm, eps, id=f"{name}-{norm}", marks=_needs(name))
    for name in ATTACKS
    for norm, eps in (("linf", 0.06), ("l2", 0.6))
    if (name, norm) != ("square", "l2")  # which needs larger images: see test_square.py
]


def planned(name: str, norm: Norm, eps: float) -> Plan:
    defense = box(Prototypes(), steps=1, sigma_unflagged=0.02)
    made = plan(name, defense, Options(norm, eps, steps=3, samples=2, check=4))
    return cheap(made)


def cheap(made: Plan, queries: int = 64) -> Plan:
    if isinstance(made.attack, Spsa):
        return dataclasses.replace(made, attack=dataclasses.replace(made.attack, queries=queries))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "eps"), CASES)
def test_stays_in_bounds_and_says_what_it_did(name: str, norm: Norm, eps: float) -> None:
    images, labels = Prototypes().images(4)
    images[0] = images[0].round()  # at the borders of the range
    before, made = images.clone(), planned(name, norm, eps)
    result = made.attack(made.target, images, labels, seed=3)
    assert torch.equal(images, before)
    assert result.images.dtype == torch.float32
    assert result.images.shape == images.shape
    assert not result.images.requires_grad
    assert 0 <= result.images.min() <= result.images.max() <= 1
    offset = (result.images - images).flatten(1)
    length = offset.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(offset, dim=1)
    assert length.max() <= eps + 1e-6
    assert result.success.shape == (4,)
    assert torch.equal(result.success, result.strength > 0)
    # An image handed back as it came is said to have failed.
    assert not (result.success & (length == 0)).any()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "eps"), CASES)
def test_the_seed_decides_everything(name: str, norm: Norm, eps: float) -> None:
    images, labels = Prototypes().images(2)
    made = planned(name, norm, eps)
    first = made.attack(made.target, images, labels, seed=5)
    made.target(images)  # somebody else draws from the target in between
    again = made.attack(made.target, images, labels, seed=5)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.strength, again.strength)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("transfer", "fgsm", "pgd", "r+pgd", "mim", "bpda", "bpda-eot", "exact", "held", "spsa"),
        pytest.param("autoattack-rand", marks=_needs("autoattack-rand")),
    ],
)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 1.5)])
def test_breaks_a_defense_that_does_nothing(name: str, norm: Norm, eps: float) -> None:
    """With a large ball and nearly no noise every attack on the label must get through."""
    images, labels = Prototypes().images(4, share=0.3)
    defense = box(Prototypes(), steps=1, sigma=0.01, step_bounds=(1e-4, 1e-4))
    made = cheap(plan(name, defense, Options(norm, eps, steps=10, samples=2, check=4)), 256)
    result = made.attack(made.target, images, labels)
    assert result.success.all()
    assert (seeded(made.target, 77)(result.images).argmax(1) != labels).all()


def test_a_plan_says_how_many_chains_answer_and_confirm() -> None:
    defense = box(Prototypes())
    options = Options(samples=5, check=9)
    says = {name: (p.mode, p.samples, p.check) for name in ATTACKS if (p := plan(name, defense, options))}
    assert says["transfer"] == ("bare", 1, None)
    assert says["pgd"] == ("exact", 1, None)
    assert says["bpda"] == ("bpda", 1, None)
    assert says["bpda-eot"] == ("bpda", 5, 9)
    assert says["score-aware-targeted"] == ("exact", 5, 9)
    assert says["spsa"] == ("none", 5, None)
    assert says["square"] == ("none", 8, 9)
    # The strongest gradient of this defense, whose step sizes are adaptive.
    assert says["autoattack-rand"] == ("held", 20, 9)
    assert says["annealed-ce"] == says["joint"] == ("held", 5, None)
    undefended = plan("exact", box(Prototypes(), dynamics="none"), options)
    assert (undefended.samples, undefended.check) == (1, None)
    assert plan("square", box(Prototypes(), dynamics="none"), options).samples == 1
    climbing = plan("pgd", defense, Options(loss="margin", restarts=3)).attack
    assert isinstance(climbing, Pgd)
    assert (climbing.loss, climbing.restarts) == ("margin", 3)


def test_simultaneous_perturbation_probes_with_its_own_number_of_chains() -> None:
    model, drawn = Prototypes(), []

    def counting(x: Tensor) -> Tensor:
        drawn.append(len(x))
        return model(x)

    images, labels = model.images(1)
    target = Eot(box(counting), samples=7, gradient="bpda")  # type: ignore[arg-type]
    Spsa(queries=4, steps=1, chains=2)(target, images, labels)
    assert drawn == [8, 7, 7]  # 4 queries of 2 chains; then X_0 and X_1 are judged by 7


def test_names_and_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="no attack"):
        plan("charm", box(Prototypes()), Options())
    with pytest.raises(ValueError, match="a ball needs"):
        Ball("l7", 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a ball needs"):
        Ball("l2", -0.1)
