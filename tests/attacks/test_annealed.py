import dataclasses

import pytest
import torch
from torch import Tensor

from metastable.attacks.annealed import Annealed, Momentum, Recent, annealed
from metastable.attacks.ascent import Misclassify
from metastable.attacks.ball import Ball
from metastable.attacks.exact import Exact
from metastable.attacks.target import Eot, straight_through
from tests.attacks.planted import Prototypes, box


def margins(x: Tensor, labels: Tensor, defense: object, chains: int = 150) -> Tensor:
    """How wrong fresh noise finds them, in logits."""
    judge = Eot(defense, samples=chains, gradient="bpda", seed=99, stream=7)  # type: ignore[arg-type]
    with torch.no_grad():
        return Misclassify().strength(judge(x), x, labels)


@pytest.mark.slow
def test_what_it_brings_back_outlasts_fresh_noise_by_more_than_the_first_confirmed_break() -> None:
    model = Prototypes()
    images, labels = model.images(8, share=0.3)
    images = (255 * images).round() / 255
    defense = box(model, steps=1, sigma=0.1)
    target = Eot(defense, samples=4, gradient="exact")
    narrow = Exact(eps=0.1, step=0.02, steps=20, samples=4, check=20)(target, images, labels, seed=1)
    wide = Annealed(eps=0.1, steps=20, samples=4, window=8, certain=2.0)(target, images, labels, seed=1)
    assert wide.success.all()
    left = margins(narrow.images, labels, defense), margins(wide.images, labels, defense)
    assert (left[1] > 0).all()
    assert left[1].mean() > left[0].mean() + 0.3


def test_candidates_are_8_bit_images() -> None:
    model = Prototypes()
    images, labels = model.images(4)
    images = (255 * images).round() / 255
    found = Annealed(eps=8 / 255, steps=5)(model, images, labels).images
    assert torch.equal((255 * found).round() / 255, found)
    assert (found - images).abs().max() <= 8 / 255 + 1e-6


def test_finds_what_bpda_finds_and_nothing_through_a_masked_gradient() -> None:
    def rounded(x: Tensor) -> Tensor:
        return (x * 15).round() / 15

    model = Prototypes()
    images, labels = model.images(8, share=0.35)
    attack = Annealed(eps=0.06, steps=20)
    assert attack(straight_through(rounded, model), images, labels).success.all()
    masked = attack(lambda x: model(rounded(x)), images, labels)
    assert masked.success.float().mean() < 0.3


class Falling:
    """A target whose wrong class leads by a margin that the script gives, one a call."""

    def __init__(self, script: list[float]) -> None:
        self.script, self.seen = script, list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        margin = self.script[min(len(self.seen), len(self.script) - 1)]
        self.seen.append(len(x))
        wrong = x.flatten(1).mean(1) * 1e-3 + margin
        return torch.stack([torch.zeros_like(wrong), wrong], 1)


def test_an_image_stays_until_a_break_is_certain_and_leaves_then() -> None:
    x, y = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    lucky = Falling([-1.0, 1.0, -1.0, 2.5, -1.0])
    result = Annealed(eps=0.1, steps=10, certain=2.0)(lucky, x, y)
    assert lucky.seen == [1, 1, 1, 1]  # 1.0 was wrong and not certain
    assert result.strength == pytest.approx(2.5, abs=0.01)
    narrow = Falling([0.5])
    result = Annealed(eps=0.1, steps=3, restarts=2, certain=2.0)(narrow, x, y)
    assert len(narrow.seen) == 8  # 0.5 is not half of what is certain: a second run
    assert result.success.all()
    fair = Falling([1.2])
    Annealed(eps=0.1, steps=3, restarts=2, certain=2.0)(fair, x, y)
    assert len(fair.seen) == 4


def test_a_margin_is_the_mean_over_the_window() -> None:
    recent, rows = Recent(3, 2, torch.device("cpu")), torch.tensor([0, 2])
    assert recent.add(rows, torch.tensor([1.0, -3.0])).tolist() == [1.0, -3.0]
    assert not recent.full(rows).any()
    assert recent.add(rows, torch.tensor([2.0, -1.0])).tolist() == [1.5, -2.0]
    assert recent.full(rows).all()
    assert recent.add(rows, torch.tensor([4.0, -1.0])).tolist() == [3.0, -1.0]
    assert not recent.full(torch.tensor([1])).any()
    target = Eot(box(Prototypes()), samples=1, gradient="exact")
    attack = Annealed(samples=16, window=48)
    assert attack.on(target, 0)[1] == 3
    assert attack.on(Prototypes(), 0)[1] == 1


def test_the_loss_that_is_asked_for_is_climbed_with_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = Misclassify.loss

    def spy(self: Misclassify, *given: Tensor) -> Tensor:
        seen.append(self.kind)
        return original(self, *given)

    monkeypatch.setattr(Misclassify, "loss", spy)
    model = Prototypes()
    images, labels = model.images(2)
    for loss in ("ce", "margin"):
        Annealed(eps=0.01, steps=1, loss=loss)(model, images, labels)  # type: ignore[arg-type]
        assert set(seen) == {loss}
        seen.clear()
    x = torch.zeros(1, 1, 1, 2)
    mover = Momentum(x, Ball("linf", 1.0), 0.75)
    rows = torch.tensor([0])
    assert mover.move(rows, torch.tensor([[[[3.0, -1.0]]]])).flatten().tolist() == [1.0, -1.0]
    # Three quarters of the first gradient, 0.56, outweigh the half that points back.
    assert mover.move(rows, torch.tensor([[[[-1.0, -1.0]]]])).flatten().tolist() == [1.0, -1.0]


def test_restarts_begin_elsewhere() -> None:
    starts: list[Tensor] = []

    def target(x: Tensor) -> Tensor:
        starts.append(x.detach().clone())
        return torch.stack([x.flatten(1).sum(1) * 0 + 1, x.flatten(1).sum(1) * 0], 1)

    x = torch.full((1, 3, 4, 4), 0.5)
    Annealed(eps=0.1, steps=1, restarts=3)(target, x, torch.zeros(1, dtype=torch.long), seed=3)
    first, second, third = starts[0], starts[2], starts[4]
    assert (first - x).abs().max() < 2 / 255
    assert (second - x).abs().max() > 0.05
    assert not torch.equal(second, third)


def test_steps_shrink_from_first_to_last() -> None:
    lengths = [annealed(turn, 10, 1 / 3, 1 / 20) for turn in range(10)]
    assert lengths[0] == pytest.approx(1 / 3)
    assert lengths[-1] == pytest.approx(1 / 20)
    assert lengths == sorted(lengths, reverse=True)


def test_nonsense_is_refused() -> None:
    for wrong in ({"steps": 0}, {"first": 0.01}, {"last": 0.0}, {"window": 0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            Annealed(**wrong)  # type: ignore[arg-type]


def test_the_attacked_chains_are_mirrored_by_halves_where_the_classifier_averages_mirrors() -> None:
    target = Eot(box(Prototypes()), samples=1, gradient="exact")
    attacked, _ = Annealed(samples=4, bf16=True, levels="mixed").on(target, 3)
    assert isinstance(attacked, Eot)
    assert (attacked.mirror, attacked.samples, attacked.bf16, attacked.levels) == (True, 4, True, "mixed")
    bare = Eot(box(Prototypes(), dynamics="none"), samples=1, gradient="exact")
    alone, looks = Annealed(samples=4).on(bare, 3)
    assert isinstance(alone, Eot)
    assert (alone.mirror, alone.samples, looks) == (False, 1, 1)
    assert dataclasses.replace(attacked, seed=0).seed == 0
