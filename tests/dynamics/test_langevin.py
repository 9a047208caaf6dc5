import torch

from metastable.dynamics.langevin import langevin, langevin_step


def test_step_is_equation_3() -> None:
    x, s, z = (torch.randn(2, 3, 4, 4, dtype=torch.double) for _ in range(3))
    tau = 0.3
    assert torch.allclose(langevin_step(x, s, tau, z), x + (tau**2 / 2) * s + tau * z, rtol=0, atol=1e-15)


def test_step_in_unit_range_equals_hills_step_in_his_range() -> None:
    """tau = 0.005 in [0, 1] is the paper's 0.01 in [-1, 1], with the score by the chain rule."""

    def hill_score(y: torch.Tensor) -> torch.Tensor:  # an arbitrary grad log p in [-1, 1] coordinates
        return torch.sin(3 * y)

    x = torch.rand(2, 1, 4, 4, dtype=torch.double)
    z = torch.randn_like(x)
    theirs = 2 * x - 1
    theirs = theirs + 0.5 * 0.01**2 * hill_score(theirs) + 0.01 * z
    ours = langevin_step(x, 2 * hill_score(2 * x - 1), 0.005, z)
    assert torch.allclose(2 * ours - 1, theirs, rtol=0, atol=1e-14)


def test_quadratic_energy_has_its_known_stationary_law() -> None:
    """U = (x - m)^2 / (2 v): the discrete chain has mean m and variance v / (1 - tau^2 / (4 v))."""
    m, v, tau = 0.4, 0.09, 0.25
    rng = torch.Generator().manual_seed(0)
    start = torch.zeros(4000, 1, 2, 2, dtype=torch.double)
    end = langevin(
        start,
        lambda x: (m - x) / v,
        tau=tau,
        steps=60,
        noise=lambda t: torch.randn(start.shape, generator=rng, dtype=torch.double),
    )
    n = end.numel()
    variance = v / (1 - tau**2 / (4 * v))
    assert abs(float(end.mean()) - m) < 4 * (variance / n) ** 0.5
    assert abs(float(end.var()) / variance - 1) < 4 * (2 / n) ** 0.5


def test_a_noise_factor_gives_its_temperature() -> None:
    """Eq. 13 on U = x^2 / 2: the stationary variance is eta^2 times that of eq. 3."""
    rng = torch.Generator().manual_seed(0)
    x, tau, eta = torch.zeros(4000, 1, 2, 2), 0.5, 0.5
    end = langevin(
        x, lambda x: -x, tau=tau, steps=60, eta=eta, noise=lambda t: torch.randn(x.shape, generator=rng)
    )
    keep = 1 - tau**2 / 2
    assert abs(float(end.var()) / ((eta * tau) ** 2 / (1 - keep**2)) - 1) < 0.04


def test_the_default_noise_factor_is_equation_3_to_the_bit() -> None:
    x, s, z = torch.randn(3, 2, 1, 4, 4).unbind(0)
    tau = torch.tensor(0.0123)
    assert torch.equal(langevin_step(x, s, tau, z), x + 0.5 * tau**2 * s + tau * z)
