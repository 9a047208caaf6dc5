from __future__ import annotations

import pytest
import torch

from metastable.networks import channels_last
from metastable.networks.energy import EnergyNetwork
from metastable.training.sampler import Sampler, run_chains

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.slow
def test_a_sampler_is_run_chains_also_after_the_weights_have_changed() -> None:
    torch.manual_seed(0)
    network = channels_last(EnergyNetwork(1, 28, 4).to(DEVICE))
    sampler = Sampler(network, (3, 1, 28, 28), 0.01, 4, DEVICE)
    for turn in range(3):
        x = torch.rand(3, 1, 28, 28, device=DEVICE).contiguous(memory_format=torch.channels_last)
        before = x.clone()
        got, strength = sampler(x, torch.Generator(DEVICE).manual_seed(turn))
        wanted, norm = run_chains(network, x, 0.01, 4, torch.Generator(DEVICE).manual_seed(turn))
        assert torch.allclose(got, wanted, atol=1e-5)
        assert abs(strength - norm) <= 1e-4 * norm
        assert torch.equal(x, before)
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(1.5)
