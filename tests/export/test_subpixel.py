from __future__ import annotations

import pytest
import torch
from torch import nn

from export.subpixel import SubpixelScore, without_transposes
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork


@pytest.mark.parametrize(
    ("channels", "size", "image"),
    [(3, 32, (32, 32)), (1, 28, (28, 28)), (3, 32, (47, 70)), (3, 32, (5, 40)), (1, 28, (1, 1))],
)
def test_the_way_back_by_pixel_shuffle_is_the_same_score(
    channels: int, size: int, image: tuple[int, int]
) -> None:
    torch.manual_seed(3)
    network = EnergyNetwork(channels, size, features=4).double()
    x = torch.rand(3, channels, *image, dtype=torch.double)
    assert torch.allclose(SubpixelScore(network)(x), network.score(x), rtol=1e-10, atol=1e-13)


def test_doublings_by_pixel_shuffle_are_the_same_network() -> None:
    torch.manual_seed(4)
    network = ScoreNetwork(widths=(4, 8, 12)).double().eval()
    other = without_transposes(network)
    assert not [one for one in other.modules() if isinstance(one, nn.ConvTranspose2d)]
    assert [one for one in network.modules() if isinstance(one, nn.ConvTranspose2d)]
    x = torch.rand(3, 3, 32, 32, dtype=torch.double)
    assert torch.allclose(other(x), network(x), rtol=1e-10, atol=1e-13)
