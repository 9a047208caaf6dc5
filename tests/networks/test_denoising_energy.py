import pytest
import torch

from metastable.networks.denoising_energy import DenoisingEnergy


def network(channels: int = 3, sigma: float = 0.08) -> DenoisingEnergy:
    torch.manual_seed(0)
    made = DenoisingEnergy(channels, (8, 12), sigma=sigma).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("size", [(32, 32), (30, 33), (8, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_score_is_the_gradient_inside_and_beyond_the_wall(channels: int, size: tuple[int, int]) -> None:
    made = network(channels)
    x = torch.rand(2, channels, *size, dtype=torch.double).mul(2).sub(0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(made(x).sum(), x)
    torch.testing.assert_close(made.score(x), -gradient, rtol=1e-10, atol=1e-10)
    assert made.residual(x).shape == x.shape


def test_the_score_has_a_derivative_of_its_own() -> None:
    made = network()
    x, v, w = torch.rand(3, 1, 3, 8, 8, dtype=torch.double)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((made.score(at) * w).sum(), at)
    h = 1e-5
    difference = (made.score(x + h * v) - made.score(x - h * v)).detach().mul(w).sum() / (2 * h)
    assert float((gradient * v).sum()) == pytest.approx(float(difference), rel=1e-5)


def test_score_is_differentiable_in_the_weights() -> None:
    made, x = network(), torch.rand(2, 3, 8, 8, dtype=torch.double)
    (explicit,) = torch.autograd.grad(made.score(x).square().sum(), made.shrink.weight)
    y = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(made(y).sum(), y, create_graph=True)
    (double,) = torch.autograd.grad(g.square().sum(), made.shrink.weight)
    torch.testing.assert_close(explicit, double, rtol=1e-9, atol=1e-12)


def test_of_a_perfect_denoiser_it_is_the_distance_and_its_step_the_way_back() -> None:
    """Images of zeros are denoised by r(x) = -x, which a linear network can do."""
    made = DenoisingEnergy(1, (4, 4), sigma=0.1).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        for i in range(4):
            made.head.weight[i, i, 1, 1] = 1
            made.tail.weight[i, i, 1, 1] = -1
        made.tail.bias.fill_(-0.5)  # the network sees x - 1/2
    x = torch.rand(3, 1, 8, 8, dtype=torch.double)
    torch.testing.assert_close(made(x), x.square().sum((1, 2, 3)) / (2 * 0.1**2))
    torch.testing.assert_close(made.denoise(x), torch.zeros_like(x), rtol=0, atol=1e-12)


def test_the_wall_pulls_back_from_two_sigma_on() -> None:
    made = network(1, sigma=0.1)
    near, far = torch.full((2, 1, 1, 8, 8), 0.5, dtype=torch.double)
    near[:, :, 0, 0], far[:, :, 0, 0] = 1.2, 1.3
    assert not made._beyond(near).any()
    assert made._beyond(far).flatten()[0].item() == pytest.approx(0.1)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1.5, float("nan")])
def test_a_noise_that_is_none_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must lie"):
        DenoisingEnergy(sigma=sigma)
