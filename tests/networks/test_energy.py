import pytest
import torch

from metastable.networks.energy import EnergyNetwork


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_explicit_score_equals_float64_autograd(channels: int, size: int) -> None:
    torch.manual_seed(0)
    network = EnergyNetwork(channels, size, features=8).double()
    x = torch.rand(5, channels, size, size, dtype=torch.double, requires_grad=True)
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


def test_score_is_differentiable_in_the_weights() -> None:
    """The gradient of the explicit graph equals double backward through autograd."""
    torch.manual_seed(1)
    network = EnergyNetwork(features=4).double()
    x = torch.rand(2, 3, 32, 32, dtype=torch.double)
    weight = network.hidden[1].weight
    (explicit,) = torch.autograd.grad(network.score(x).square().sum(), weight)
    y = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(network(y).sum(), y, create_graph=True)
    (double,) = torch.autograd.grad(g.square().sum(), weight)
    assert torch.allclose(explicit, double, rtol=1e-9, atol=1e-12)
