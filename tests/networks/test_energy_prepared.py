"""The prepared score against the network's own: to the bit in float32, near it in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metastable import bundle
from metastable.networks import channels_last
from metastable.networks.energy import EnergyNetwork
from metastable.networks.energy_prepared import PreparedScore


def images(channels: int, size: int, count: int = 6) -> torch.Tensor:
    x = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(2))
    return (1.4 * x - 0.2).contiguous(memory_format=torch.channels_last)  # Langevin states are not clipped


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (2, 27)])
@torch.no_grad()
def test_float32_is_the_networks_own_score_to_the_bit(channels: int, size: int) -> None:
    torch.manual_seed(0)
    network = channels_last(EnergyNetwork(channels, size, 8))
    x = images(channels, size)
    assert torch.equal(PreparedScore(network).score(x), network.score(x))


@pytest.mark.parametrize("wall", [0.0, 0.03])
@torch.no_grad()
def test_that_of_a_smooth_energy_is_its_score_but_for_rounding(wall: float) -> None:
    torch.manual_seed(0)
    network = channels_last(EnergyNetwork(3, 32, 8, "silu", wall))
    network.last.weight.mul_(1e5)  # gradients of some hundreds, as trained energies have them
    x = images(3, 32)
    exact = network.score(x)
    assert (PreparedScore(network).score(x) - exact).norm() < 1e-6 * exact.norm()
    error = PreparedScore(network, torch.float16).score(x) - exact
    assert error.norm() < 0.02 * exact.norm()


def test_it_is_a_copy_until_it_is_refreshed() -> None:
    network = EnergyNetwork(features=4)
    prepared, x = PreparedScore(network), images(3, 32)
    before = prepared.score(x)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3.0)
    assert torch.equal(prepared.score(x), before)
    assert not list(prepared.parameters())
    held = [buffer.data_ptr() for buffer in prepared.buffers()]
    prepared.refresh(network)
    with torch.no_grad():
        assert torch.equal(prepared.score(x), network.score(x))
    assert held == [buffer.data_ptr() for buffer in prepared.buffers()]


@pytest.mark.slow
@torch.no_grad()
def test_half_precision_is_near_on_the_shipped_energy_and_far_from_its_limits(shipped: Path) -> None:
    network = bundle.network(shipped, "energy").double()
    x = images(3, 32, 16)
    wanted = network.score(x.double())  # type: ignore[operator]
    for dtype, bound in ((torch.float16, 0.015), (torch.bfloat16, 0.08)):
        raw = PreparedScore(network.float(), dtype)(x - 0.5)  # type: ignore[arg-type]
        assert raw.dtype == dtype
        got = PreparedScore(network.float(), dtype).score(x).double()  # type: ignore[arg-type]
        error = (got - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
        assert error.median() < bound, dtype
        if dtype == torch.float16:
            assert 2.0**-10 < raw.float().abs().amax() < 2.0**12


@torch.no_grad()
def test_nothing_is_left_that_could_be_prepared() -> None:
    counted: list[str] = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            counted.append(func.__name__)
            return func(*args, **(kwargs or {}))

    prepared, centred = PreparedScore(EnergyNetwork(features=4)), images(3, 32) - 0.5
    with Counted():
        prepared(centred)
    work = [name for name in counted if not name.startswith("expand")]
    assert len(work) == 16  # eight convolutions, four LeakyReLUs, four masks


@pytest.mark.parametrize("size", [(1, 1), (20, 44), (47, 33), (64, 24)])
@torch.no_grad()
def test_other_sizes_than_the_trained_one(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = channels_last(EnergyNetwork(3, 32, 8))
    x = torch.rand(2, 3, *size)
    torch.testing.assert_close(PreparedScore(network).score(x), network.score(x), rtol=1e-5, atol=1e-6)
