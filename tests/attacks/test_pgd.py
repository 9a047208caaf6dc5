import pytest
import torch

from metastable.attacks.ascent import Misclassify
from metastable.attacks.ball import Ball
from metastable.attacks.fgsm import Fgsm
from metastable.attacks.pgd import Pgd, pgd
from metastable.attacks.spsa import Spsa
from tests.attacks.planted import Prototypes


def test_finds_the_corner_of_the_ball_on_a_linear_model() -> None:
    """Cross entropy of a two-class linear model rises along a fixed sign vector: the optimum is known."""
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(3 * 64, generator=rng)

    def model(x: torch.Tensor) -> torch.Tensor:
        margin = x.flatten(1) @ w
        return torch.stack([margin, -margin], dim=1)

    images = 0.3 + 0.4 * torch.rand(4, 3, 8, 8, generator=rng)
    eps = 8 / 255
    attacked = pgd(model, images, torch.zeros(4, dtype=torch.long), eps=eps, steps=30)
    assert torch.allclose(attacked, images - eps * w.sign().view(1, 3, 8, 8), atol=1e-6)


def test_stays_in_the_ball_and_in_range_and_leaves_its_input_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    images = torch.rand(5, 3, 8, 8).round()  # at the borders of the range
    before = images.clone()
    attacked = pgd(model, images, torch.arange(5), eps=0.1, step=0.05, steps=3, seed=1)
    assert torch.equal(images, before)
    assert (attacked - images).abs().max() <= 0.1 + 1e-6
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert not attacked.requires_grad
    assert torch.equal(attacked, pgd(model, images, torch.arange(5), eps=0.1, step=0.05, steps=3, seed=1))


def test_a_targeted_attack_reaches_the_class_it_names() -> None:
    model = Prototypes()
    images, labels = model.images(8)
    wanted = (labels + 2) % 4
    result = Pgd(eps=0.25, step=0.02, steps=40, targeted=True)(model, images, wanted)
    assert result.success.all()
    assert torch.equal(model(result.images).argmax(1), wanted)
    margin = Pgd(eps=0.25, step=0.02, steps=40, loss="margin", targeted=True)(model, images, wanted)
    assert torch.equal(model(margin.images).argmax(1), wanted)


def test_keeps_the_strongest_candidate_and_not_the_last() -> None:
    """With steps far too long the walk jumps about; what is kept was the best that was seen."""
    seen: list[torch.Tensor] = []
    model = Prototypes()
    images, labels = model.images(5)

    def watched(x: torch.Tensor) -> torch.Tensor:
        out = model(x)
        seen.append(Misclassify().strength(out.detach(), x, labels))
        return out

    result = Pgd(eps=0.1, step=0.15, steps=7)(watched, images, labels)
    assert torch.allclose(result.strength, torch.stack(seen).amax(0))
    assert torch.allclose(Misclassify().strength(model(result.images), images, labels), result.strength)


def test_starts_and_projections_of_the_l2_ball() -> None:
    rng = torch.Generator().manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(50, 3, 8, 8, generator=rng)
    ball = Ball("l2", 0.3)
    lengths = (ball.start(images, rng) - images).flatten(1).norm(dim=1)
    assert lengths.max() <= 0.3 + 1e-6
    assert (lengths / 0.3).pow(192).mean().sub(0.5).abs() < 0.15  # uniform in volume
    far = images + torch.randn(images.shape, generator=rng)
    assert (ball.project(far, images) - images).flatten(1).norm(dim=1).max() <= 0.3 + 1e-6
    assert torch.equal(ball.project(images, images), images)
    tiny = 1e-30 * torch.randn(2, 3, 8, 8, generator=rng)
    assert torch.allclose(ball.direction(tiny).flatten(1).norm(dim=1), torch.ones(2))
    assert not ball.direction(torch.zeros(2, 3, 8, 8)).any()


def test_fgsm_takes_one_full_step() -> None:
    model = Prototypes()
    images, labels = model.images(3)
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), labels, reduction="sum"), x)
    found = Fgsm(eps=0.03)(model, images, labels).images
    assert torch.allclose(found, (images + 0.03 * gradient.sign()).clamp(0, 1), atol=1e-6)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="steps and restarts"):
        Pgd(steps=0)
    with pytest.raises(ValueError, match="queries"):
        Spsa(queries=3)
