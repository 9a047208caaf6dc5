import torch

from metastable.attacks.pgd import pgd


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
