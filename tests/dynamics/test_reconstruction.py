import pytest
import torch
from torch import Tensor

from metastable.dynamics.reconstruction import reconstruct
from metastable.errors import NoGradient

SHAPE = (3, 1, 2, 2)


def linear(x: Tensor) -> Tensor:
    """The score of N(0.5, 0.25): a Langevin step of it is linear in the state."""
    return (0.5 - x) / 0.25


def normals(t: int) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(t))


def by_hand(x: Tensor, *, walk: int, iterations: int, rate: float, tau: float, eta: float) -> Tensor:
    """The same for `linear`: M(z) = a^K z + the rest, so the loss's gradient is -2 a^K (x - M(z))."""
    a = 1 - 0.5 * tau**2 / 0.25

    def generate(z: Tensor) -> Tensor:
        for t in range(walk):
            z = a * z + (1 - a) * 0.5 + eta * tau * normals(t + 1)
        return z

    z = torch.distributions.Normal(0.0, 1.0).cdf(normals(0))
    for _ in range(iterations):
        z = z + rate * 2 * a**walk * (x - generate(z))
    return generate(z)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_of_a_linear_score_it_is_known(eta: float) -> None:
    x = torch.rand(SHAPE, dtype=torch.float64)
    given = {"walk": 3, "iterations": 5, "rate": 0.2, "tau": 0.3, "eta": eta}
    assert torch.allclose(reconstruct(x, linear, noise=normals, **given), by_hand(x, **given), atol=1e-12)


def test_many_iterations_reach_an_image_that_the_generator_can_make() -> None:
    x = torch.rand(SHAPE, dtype=torch.float64)
    end = reconstruct(x, linear, walk=4, iterations=200, rate=0.3, tau=0.3, eta=0.0, noise=normals)
    assert torch.allclose(end, x, atol=1e-9)


def test_a_roll_reconstructs_the_reconstruction_with_the_next_noise() -> None:
    x = torch.rand(SHAPE, dtype=torch.float64)
    given = {"walk": 2, "iterations": 3, "rate": 0.1, "tau": 0.3, "eta": 1.0}
    twice = reconstruct(x, linear, noise=normals, rolls=2, **given)
    once = reconstruct(x, linear, noise=normals, **given)
    assert torch.equal(twice, reconstruct(once, linear, noise=lambda t: normals(3 + t), **given))


def test_each_chain_may_have_its_own_numbers() -> None:
    x = torch.rand(SHAPE, dtype=torch.float64)
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    together = reconstruct(
        x, linear, walk=2, iterations=3, rate=rates.view(-1, 1, 1, 1), tau=0.3, eta=0.0, noise=normals
    )
    for row, rate in enumerate(rates.tolist()):
        alone = by_hand(x, walk=2, iterations=3, rate=rate, tau=0.3, eta=0.0)
        assert torch.allclose(together[row], alone[row], atol=1e-12)


def test_it_works_under_inference_mode_and_leaves_its_image_alone() -> None:
    with torch.inference_mode():
        x = torch.full(SHAPE, 0.3, dtype=torch.float64)
        end = reconstruct(x, linear, walk=1, iterations=1, rate=0.1, tau=0.3, noise=normals)
    assert end.isfinite().all()
    assert torch.equal(x, torch.full(SHAPE, 0.3, dtype=torch.float64))


def test_its_gradient_is_refused() -> None:
    x = torch.rand(SHAPE, dtype=torch.float64, requires_grad=True)
    with pytest.raises(NoGradient, match="BPDA"):
        reconstruct(x, linear, walk=1, iterations=1, rate=0.1, tau=0.3, noise=normals)
