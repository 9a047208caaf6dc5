import pytest
import torch

from metastable.attacks.smooth import smooth_backward
from metastable.networks.energy import ACTIVATIONS, Activation, EnergyNetwork


@pytest.mark.parametrize(
    ("activation", "wall"), [("leaky", 0.0), ("silu", 0.0), ("leaky", 0.1), ("silu", 0.1)]
)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_explicit_score_equals_float64_autograd(
    channels: int, size: int, activation: Activation, wall: float
) -> None:
    torch.manual_seed(0)
    network = EnergyNetwork(channels, size, features=8, activation=activation, wall=wall).double()
    x = torch.rand(5, channels, size, size, dtype=torch.double).mul(1.4).sub(0.2).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    exact = -gradient
    assert torch.allclose(network.score(x.detach()), exact, rtol=1e-12, atol=1e-14)
    single = network.float().score(x.detach().float()).double()
    error = (single - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert error.median() < 1e-5  # a sign near zero may flip in float32, so not the maximum


def test_matches_the_papers_size_and_keeps_the_batch_dimension() -> None:
    network = EnergyNetwork()
    assert 680_000 < sum(p.numel() for p in network.parameters()) < 700_000
    assert network(torch.rand(1, 3, 32, 32)).shape == (1,)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_score_is_differentiable_in_the_weights(activation: Activation) -> None:
    """The gradient of the explicit graph equals double backward through autograd."""
    torch.manual_seed(1)
    network = EnergyNetwork(features=4, activation=activation).double()
    x = torch.rand(2, 3, 32, 32, dtype=torch.double)
    weight = network.hidden[1].weight
    (explicit,) = torch.autograd.grad(network.score(x).square().sum(), weight)
    y = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(network(y).sum(), y, create_graph=True)
    (double,) = torch.autograd.grad(g.square().sum(), weight)
    assert torch.allclose(explicit, double, rtol=1e-9, atol=1e-12)


def test_only_the_smooth_energy_has_a_score_with_a_derivative_of_its_own() -> None:
    """Along a line, the derivative of the score is what finite differences say; with kinks it is nothing."""
    torch.manual_seed(1)
    x, v, w = torch.rand(3, 2, 3, 32, 32, dtype=torch.double)
    at = x.clone().requires_grad_()
    for activation in ACTIVATIONS:
        network = EnergyNetwork(features=4, activation=activation).double().requires_grad_(False)
        if network.piecewise:
            assert not network.score(at).requires_grad
            continue
        (gradient,) = torch.autograd.grad((network.score(at) * w).sum(), at)
        h = 1e-5
        difference = (network.score(x + h * v) - network.score(x - h * v)).mul(w).sum() / (2 * h)
        assert float((gradient * v).sum()) == pytest.approx(float(difference), rel=1e-5)
        assert smooth_backward(network) == network.score


def test_a_wall_acts_outside_images_alone_and_pulls_back() -> None:
    torch.manual_seed(0)
    plain, walled = EnergyNetwork(features=4), EnergyNetwork(features=4, wall=0.05)
    walled.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(walled(x), plain(x))
    assert torch.equal(walled.score(x), plain.score(x))
    x[:, 0, 0, 0], x[:, 1, 0, 0] = 1.1, -0.1
    pull = walled.score(x) - plain.score(x)
    assert pull[:, 0, 0, 0].tolist() == pytest.approx([-0.1 / 0.05**2] * 2, rel=1e-4)
    assert pull[:, 1, 0, 0].tolist() == pytest.approx([0.1 / 0.05**2] * 2, rel=1e-4)
    assert (pull != 0).sum() == 4
    assert (walled(x) - plain(x)).tolist() == pytest.approx([4.0, 4.0], rel=1e-4)
    with pytest.raises(ValueError, match="wall must lie"):
        EnergyNetwork(wall=-1.0)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="use leaky or silu"):
        EnergyNetwork(activation="relu")  # type: ignore[arg-type]


SIZES = [(1, 1), (5, 40), (31, 33), (48, 64), (47, 70)]


@pytest.mark.parametrize("size", SIZES)
def test_other_sizes_have_a_score_that_is_the_gradient(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = EnergyNetwork(3, 32, features=4).double()
    x = torch.rand(2, 3, *size, dtype=torch.double, requires_grad=True)
    energy = network(x)
    assert energy.shape == (2,)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(network.score(x.detach()), -gradient, rtol=1e-10, atol=1e-13)


def test_a_larger_image_has_the_energy_of_its_parts() -> None:
    """The inner columns of a constant image are all equal: each new one adds the same."""
    torch.manual_seed(0)
    network = EnergyNetwork(3, 32, features=4).double()
    images = [torch.full((1, 3, 64, 32 + 8 * n), 0.3, dtype=torch.double) for n in (6, 7, 8)]
    a, b, c = (float(network(image).detach()) for image in images)
    assert b - a == pytest.approx(c - b, rel=1e-9)
    assert abs(b - a) > 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_the_smooth_backward_pass_has_the_same_value(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = EnergyNetwork(3, 32, features=4).double()
    x = torch.rand(2, 3, *size, dtype=torch.double, requires_grad=True)
    made = smooth_backward(network)(x)
    torch.testing.assert_close(made, network.score(x), rtol=1e-5, atol=1e-9)
    (gradient,) = torch.autograd.grad(made.square().sum(), x)
    assert gradient.abs().max() > 0
