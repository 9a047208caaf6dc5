"""Chains for training: K Langevin steps under weights that change from call to call."""

from __future__ import annotations

import torch
from torch import Tensor

from metastable.dynamics.langevin import langevin_step
from metastable.networks.energy import EnergyNetwork


@torch.no_grad()
def run_chains(
    network: EnergyNetwork, x: Tensor, tau: float, steps: int, rng: torch.Generator
) -> tuple[Tensor, float]:
    """`steps` Langevin steps (eq. 3) from x [B, C, H, W] in [0, 1] units, without clamping.

    Returns the last states and the gradient strength, the mean of |grad U| over steps and chains.
    """
    x, total = _walk(network, x, tau, steps, rng)
    return x, total.item() / steps


class Sampler:
    """`run_chains` on batches of one shape; on a GPU all steps are one CUDA graph.

    A step is some thirty short kernels, and a hundred steps an update would wait for their launches.  The
    graph reads the weights where they lie, so optimizers must change them in place, as PyTorch's do.

    Args:
        shape: [B, C, H, W] of the batches.
        device: of the network.
    """

    def __init__(
        self,
        network: EnergyNetwork,
        shape: tuple[int, ...],
        tau: float,
        steps: int,
        device: torch.device,
    ) -> None:
        self._network, self._tau, self._steps = network, tau, steps
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._x = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
            self._rng = torch.Generator(device)
            self._record()

    @torch.no_grad()
    def __call__(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, float]:
        """As `run_chains`; rng is freshly seeded, and only its seed is used on a GPU."""
        if self._graph is None:
            return run_chains(self._network, x, self._tau, self._steps, rng)
        self._x.copy_(x)
        self._rng.manual_seed(rng.initial_seed())
        self._graph.replay()
        return self._end.clone(), self._total.item() / self._steps

    @torch.no_grad()
    def _record(self) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # cuDNN chooses its algorithms
            _walk(self._network, self._x, self._tau, 2, self._rng)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self._rng)
        with torch.cuda.graph(self._graph):
            self._end, self._total = _walk(self._network, self._x, self._tau, self._steps, self._rng)


def _walk(
    network: EnergyNetwork, x: Tensor, tau: float, steps: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    b, c, h, w = x.shape
    total = torch.zeros((), device=x.device)
    for _ in range(steps):
        score = network.score(x)
        total += score.square().sum(dim=(1, 2, 3)).sqrt().mean()
        # Drawn in the order in which channels-last images lie in memory: no copy in the addition.
        noise = torch.randn(b, h, w, c, generator=rng, device=x.device).permute(0, 3, 1, 2)
        x = langevin_step(x, score, tau, noise)
    return x, total
