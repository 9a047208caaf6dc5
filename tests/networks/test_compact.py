import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metastable.bundle import stored_network
from metastable.networks.compact import CompactResNet


def test_it_is_as_small_as_it_says() -> None:
    network = CompactResNet().eval()
    assert sum(p.numel() for p in network.parameters()) == 1_919_690
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == pytest.approx(0.366e9, rel=0.01)
    assert len(stored_network(network, {}, half=True).data) < 4e6


@pytest.mark.parametrize("size", [16, 32])
def test_mirror_images_can_be_averaged(size: int) -> None:
    network = CompactResNet(7, (4, 4, 8), flip_average=True)
    x = torch.rand(3, 3, size, size)
    assert network.train()(x).shape == (3, 7)
    with torch.inference_mode():
        assert torch.allclose(network.eval()(x), network(x.flip(3)), atol=1e-5)
