import torch

from metastable.attacks.smooth import smooth_backward
from metastable.attacks.target import Eot, WhiteBox
from metastable.settings import Setting
from tests.attacks.planted import Prototypes, energy_network, gradient_of


def test_the_value_is_the_networks_own_to_the_bit() -> None:
    network, x = energy_network(), torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    score = smooth_backward(network)
    assert torch.equal(score(x.clone().requires_grad_(True)), network.score(x))
    assert torch.equal(score(x), network.score(x))


def test_the_derivative_follows_the_score_over_a_distance_where_the_exact_one_is_zero() -> None:
    """Along many directions, the change of the score over a finite step: zero says nothing, smooth does."""
    network, rng = energy_network(), torch.Generator().manual_seed(1)
    score = smooth_backward(network)
    x = torch.rand(1, 3, 8, 8, generator=rng)
    probe = torch.randn(x.shape, generator=rng)  # of <probe, score(x)>
    at = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad((probe * score(at)).sum(), at)
    assert not network.score(x.clone().requires_grad_(True)).requires_grad  # its own derivative is nowhere
    ways = torch.randn(400, 3, 8, 8, generator=rng)
    ways = 0.5 * ways / ways.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    change = (probe * (network.score(x + ways) - network.score(x - ways))).flatten(1).sum(1)
    told = (slope * ways).flatten(1).sum(1)
    both = torch.corrcoef(torch.stack([change, told]))[0, 1]
    assert both > 0.4


def test_an_attack_gets_another_gradient_of_the_same_answers() -> None:
    model, network = Prototypes(), energy_network()
    setting = Setting.of("planted", "langevin", network="energy", steps=6, tau=0.3)
    box = WhiteBox(setting, model, network.score, (), smooth_backward(network))
    assert box.strongest == "smooth"
    images, labels = model.images(2)
    targets = {g: Eot(box, samples=2, gradient=g, seed=1) for g in ("smooth", "exact", "bpda")}
    with torch.no_grad():
        answers = {name: target(images) for name, target in targets.items()}
    assert torch.equal(answers["smooth"], answers["exact"])
    found = {name: gradient_of(target, images, labels) for name, target in targets.items()}
    assert torch.allclose(found["exact"], found["bpda"], atol=1e-7)
    assert not torch.allclose(found["smooth"], found["bpda"], rtol=1e-3)
