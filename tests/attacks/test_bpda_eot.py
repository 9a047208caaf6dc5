"""Algorithm 1, and defenses that only an adaptive attacker breaks."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from metastable.attacks.ascent import Misclassify, ascend
from metastable.attacks.ball import Ball
from metastable.attacks.bpda_eot import BpdaEot
from metastable.attacks.joint import Joint
from metastable.attacks.pgd import Pgd
from metastable.attacks.spsa import Spsa
from metastable.attacks.target import Eot, straight_through
from tests.attacks.planted import Prototypes, box


def quantised(x: Tensor) -> Tensor:
    return (x * 15).round() / 15


def test_bpda_breaks_a_quantising_defense_that_pgd_does_not() -> None:
    """Rounding has no gradient: PGD through it goes nowhere, and that is not robustness."""
    model = Prototypes()
    images, labels = model.images(8, share=0.35)
    assert (model(quantised(images)).argmax(1) == labels).all()
    eps = 0.06

    masked = Pgd(eps=eps, step=eps / 4)(lambda x: model(quantised(x)), images, labels)
    honest = Pgd(eps=eps, step=eps / 4)(straight_through(quantised, model), images, labels)
    assert masked.success.float().mean() < 0.3
    assert honest.success.all()
    assert (model(quantised(honest.images)).argmax(1) != labels).all()
    blind = Spsa(eps=eps, step=eps / 4, steps=10, queries=256, radius=0.05)
    assert blind(lambda x: model(quantised(x)), images, labels).success.float().mean() > 0.7


class Scripted:
    """A target that answers by a script: margins of the wrong class, one a call, for every image."""

    def __init__(self, margins: list[float]) -> None:
        self.margins = margins
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        margin = self.margins[min(self.calls, len(self.margins) - 1)]
        self.calls += 1
        wrong = x.flatten(1).mean(1) * 1e-3 + margin
        return torch.stack([torch.zeros_like(wrong), wrong], 1)


def run(target: Scripted, verify: Scripted, steps: int) -> tuple[bool, float]:
    x = torch.full((1, 3, 4, 4), 0.5)
    result = ascend(
        target, x, torch.zeros(1, dtype=torch.long), goal=Misclassify(), ball=Ball("linf", 0.1), step=0.01,
        steps=steps, random_start=True, seed=0, direction=lambda x, g, rows: g.sign(), verify=verify,
    )  # fmt: skip
    return bool(result.success), float(result.strength)


def test_a_candidate_counts_only_if_the_large_sample_confirms_it() -> None:
    target, verify = Scripted([-3, -1, 2, 2, -1]), Scripted([-0.5, 0.4, 9])
    success, strength = run(target, verify, 4)
    # Candidates X_2 and X_3 beat the target; the check refused the first and confirmed the second.
    assert (target.calls, verify.calls) == (4, 2)
    assert success
    assert abs(strength - 0.4) < 0.01


def test_the_last_iterate_is_judged_too_and_a_survivor_is_said_to_have_survived() -> None:
    target, verify = Scripted([-3, -2, -1, 5]), Scripted([-0.25])
    success, strength = run(target, verify, 3)
    assert (target.calls, verify.calls) == (4, 1)  # X_0 ... X_3: N + 1 turns
    assert not success
    assert abs(strength + 0.25) < 0.01


def test_few_chains_give_gradients_and_many_confirm() -> None:
    model = Prototypes()
    drawn: list[int] = []

    def counting(x: Tensor) -> Tensor:
        drawn.append(len(x))
        return model(x)

    images, labels = model.images(1, share=0.45)
    target = Eot(box(counting), samples=1, gradient="exact")  # type: ignore[arg-type]
    attack = BpdaEot(eps=0.05, step=0.02, steps=20, samples=3, check=50)
    result = attack(target, images, labels)
    assert set(drawn) == {3, 50}
    assert drawn[-1] == 50
    assert result.success.all()
    # An image that is broken costs nothing more: the confirmed check was the last call.
    assert drawn.index(50) >= 1 or drawn[0] == 3


def test_restarts_go_on_with_what_withstood() -> None:
    model = Prototypes()
    images, labels = model.images(8, share=0.2)
    once = Pgd(eps=0.02, step=0.002, steps=2)(model, images, labels)
    often = Pgd(eps=0.02, step=0.002, steps=2, restarts=4)(model, images, labels)
    assert (often.strength >= once.strength).all()
    assert (often.strength > once.strength).any()


def test_the_joint_attack_walks_with_the_purification() -> None:
    """Where the score smooths, its images end smoother than BPDA's, and are taken back less."""
    model = Prototypes()
    defense = dataclasses.replace(box(model), score=lambda x: F.avg_pool2d(x, 3, 1, 1) - x)
    target = Eot(defense, samples=4, gradient="bpda")
    images, labels = model.images(4)
    shared = {"eps": 0.05, "step": 0.01, "steps": 10, "samples": 4, "check": 4}
    plain = BpdaEot(**shared)(target, images, labels)  # type: ignore[arg-type]
    for pull in ("score", "full"):
        joint = Joint(pull=pull, weight=0.9, **shared)(target, images, labels)  # type: ignore[arg-type]
        assert defense.score(joint.images).norm() < defense.score(plain.images).norm()
