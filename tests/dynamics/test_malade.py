import math

import torch

from metastable.dynamics.drift import drift, drift_step
from metastable.dynamics.malade import Malade

DATA, NOISE = 0.04, 0.15  # variances of the data and of the noise that the autoencoder removes


def residual(x: torch.Tensor) -> torch.Tensor:
    """(r(x) - x) / v of the best autoencoder for data N(0.5, DATA): the score of N(0.5, DATA + NOISE)."""
    best = 0.5 + DATA / (DATA + NOISE) * (x - 0.5)  # E[clean | noisy]
    return (best - x) / NOISE


def test_a_step_is_equation_10() -> None:
    x, s, z = torch.rand(3, 2, 1, 4, 4, dtype=torch.float64).unbind(0)
    alpha, kick = Malade(steps=1, alpha=0.02, kick=0.3).row(flagged=False)
    assert torch.allclose(drift_step(x, s, alpha, kick, z), x + 0.02 * s + 0.3 * z, rtol=0, atol=1e-15)


def test_the_best_autoencoders_residual_is_the_score_of_noisy_data() -> None:
    """Eq. 9, which makes `Autoencoder.score` a score."""
    x = torch.linspace(-1, 2, 7, dtype=torch.float64)
    assert torch.allclose(residual(x), -(x - 0.5) / (DATA + NOISE))


def test_without_kicks_it_relaxes_to_the_mode_at_the_known_rate() -> None:
    x = torch.full((2, 1, 2, 2), 0.9, dtype=torch.float64)
    end = drift(x, residual, share=0.02, strength=0.0, steps=30, noise=lambda t: torch.zeros_like(x))
    wanted = 0.5 + 0.4 * (1 - 0.02 / (DATA + NOISE)) ** 30
    assert torch.allclose(end, torch.full_like(end, wanted), atol=1e-12)


def test_kicks_give_the_stationary_variance_of_the_recursion() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.full((4000, 1, 2, 2), 0.5)
    alpha, kick = 0.02, 0.1
    keep = 1 - alpha / (DATA + NOISE)  # x' - 0.5 = keep (x - 0.5) + kick z
    end = drift(
        x, residual, share=alpha, strength=kick, steps=60, noise=lambda t: torch.randn(x.shape, generator=rng)
    )
    wanted = kick / math.sqrt(1 - keep**2)
    assert abs(float(end.std()) / wanted - 1) < 0.03
    assert abs(float(end.mean()) - 0.5) < 0.01


def test_each_step_draws_its_own_noise() -> None:
    asked: list[int] = []
    drift(
        torch.zeros(1, 1, 2, 2), residual, share=0.1, strength=0.1, steps=3,
        noise=lambda t: asked.append(t) or torch.zeros(1, 1, 2, 2),
    )  # fmt: skip
    assert asked == [0, 1, 2]
