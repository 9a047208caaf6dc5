import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metastable.training.harden_attack import ascend, judge, step_length
from metastable.training.harden_loss import attack, consistency, loss, passes
from metastable.training.harden_pipeline import Pipeline, TrainingWalk
from tests.training.harden_toys import config, networks, pipeline


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(n, 3, 16, 16), torch.arange(n) % 10


def test_one_step_is_noise_clip_one_evaluation_clip() -> None:
    classifier, score = networks()
    made = Pipeline(classifier, score, TrainingWalk(sigma=0.3))
    x, _ = images()
    z = torch.randn(1, *x.shape)
    with torch.no_grad():
        v = (x + 0.3 * z[0]).clamp(0, 1)
        p = (v + score(v)).clamp(0, 1)
        logits, purified = made(x, z)
        assert torch.equal(purified, p)
        assert torch.equal(logits, classifier(p))
        assert not torch.allclose(logits, classifier(p.flip(3)))  # no mirror average is left
        alone = Pipeline(classifier, None, TrainingWalk(sigma=0.0), ("classifier",))
        assert torch.equal(alone(x, z)[1], x)


def test_unrolled_steps_each_have_their_noise() -> None:
    made = pipeline(unroll=3, step=0.5, noise=0.1)
    assert made.purifier is not None
    x, _ = images()
    z = torch.randn(3, *x.shape)
    with torch.no_grad():
        at = x
        for i in range(3):
            at = (at + 0.5 * made.purifier(at) + 0.1 * z[i]).clamp(0, 1)
        assert torch.equal(made.purify(x, z), at)


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", [{"sigma": 0.1}, {"unroll": 2, "step": 0.7, "noise": 0.05}])
def test_the_gradient_is_that_of_float64(dynamics: dict[str, float]) -> None:
    made = pipeline(**dynamics)
    x, y = images()
    z = torch.randn(made.dynamics.unroll, *x.shape)
    reference = copy.deepcopy(made).double()

    def slopes(network: Pipeline, at: Tensor, noise: Tensor) -> list[Tensor]:
        at = at.clone().requires_grad_(True)
        p = network.purify(at, noise)
        value = F.cross_entropy(network.classifier(p), y)
        return list(torch.autograd.grad(value, [at, *network.learners]))

    for ours, theirs in zip(slopes(made, x, z), slopes(reference, x.double(), z.double()), strict=True):
        scale = float(theirs.abs().max()) + 1e-12
        assert float((ours.double() - theirs).abs().max()) < 1e-4 * scale + 1e-9
    # And that of float64 is the slope of the function: along one direction, by differences.
    (slope, *_), along = slopes(reference, x.double(), z.double()), torch.randn(x.shape).double()

    def value(at: Tensor) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(reference.classifier(reference.purify(at, z.double())), y)

    h = 1e-7
    difference = (value(x + h * along) - value(x - h * along)) / (2 * h)
    assert float(difference) == pytest.approx(float((slope * along).sum()), rel=1e-4, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_the_attack_stays_in_the_ball_and_raises_the_loss(steps: int) -> None:
    made = pipeline(sigma=0.05)
    x, y = images(32)
    z = torch.randn(steps, 1, *x.shape)
    unit = 2 * torch.rand(x.shape) - 1
    eps = torch.tensor(16 / 255)
    moved = attack(made, x, y, unit, z, eps, config(), steps)
    assert float((moved - x).abs().max()) <= 16 / 255 + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    with torch.no_grad():
        before, after = (F.cross_entropy(made(a, z[0])[0], y) for a in (x, moved))
    assert after > before
    assert all(p.requires_grad for p in made.learners)


def test_steps_are_those_of_the_sources() -> None:
    assert step_length(8 / 255, 1) == pytest.approx(10 / 255)
    assert step_length(0.1, 5) == pytest.approx(0.05)
    x = torch.full((1, 1, 1, 1), 0.5)
    up = ascend(lambda at, i: at.sum(), x, torch.zeros_like(x), eps=0.1, steps=1)
    assert float(up) == pytest.approx(0.6)
    assert float(ascend(lambda at, i: at.sum(), x, torch.zeros_like(x), eps=0.1, steps=5)) == pytest.approx(
        0.6
    )


class Watched(nn.Module):
    """Remembers the noise of each pass."""

    def __init__(self, inner: Pipeline) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[Tensor]()
        self.held, self.dynamics = inner.held, inner.dynamics

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(z)
        made: tuple[Tensor, Tensor] = self.inner(x, z)
        return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 3), ({"consistency": 1.0}, 4), ({"loss": "trades"}, 5), ({"unroll": 2}, 3)],
)
def test_no_noise_is_used_twice(changes: dict[str, object], count: int) -> None:
    settings = config(**changes)
    made = Watched(pipeline(sigma=0.1, unroll=settings.unroll))
    x, y = images()
    of_attack, reference, copies = passes(settings, 2)
    assert of_attack + reference + copies == count
    noise = torch.randn(count, settings.noises, *x.shape)
    moved = attack(made, x, y, torch.zeros_like(x), noise, 8 / 255, settings, 2)  # type: ignore[arg-type]
    value, right = loss(made, x, moved, y, noise[of_attack + reference :], settings)  # type: ignore[arg-type]
    assert value.isfinite()
    assert 0 <= float(right) <= 1
    used = torch.cat([z.flatten(2).reshape(z.shape[0], -1, len(x), 768).flatten(0, 2) for z in made.seen])
    assert len(used) == count * settings.noises * len(x)
    assert len(torch.unique(used, dim=0)) == len(used)


def test_consistency_is_the_divergence_to_the_mean() -> None:
    logits = torch.randn(2, 5, 4).double()
    p = logits.softmax(2)
    mean = p.mean(0)
    kl = sum(float((mean * (mean / q).log()).sum()) for q in p) / (2 * 5)
    entropy = -float((mean * mean.log()).sum()) / 5
    assert float(consistency(logits, 3.0, 0.5)) == pytest.approx(3 * kl + 0.5 * entropy)
    same = logits[:1].expand(2, 5, 4)
    assert float(consistency(same, 1.0, 0.0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_judging_leaves_everything_as_it_was() -> None:
    made = pipeline(sigma=0.05)
    x, y = images(20)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    found = judge(made, x, y, eps=8 / 255, steps=2, eot=2, bf16=False, batch=7)
    assert found == judge(made, x, y, eps=8 / 255, steps=2, eot=2, bf16=False, batch=7)
    assert 0 <= found["robust"] <= found["natural"] <= 1
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
