"""Networks as the CUDA runner calls them: copies on its device, in its precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metastable.engine.runners.cuda_energy import FusedScore, fits
from metastable.engine.runners.stepping import Call
from metastable.networks.energy import EnergyNetwork
from metastable.networks.energy_prepared import PreparedScore

CudaPrecision = Literal["f32", "tf32", "bf16", "f16"]
_TYPES = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Network:
    """One network's forward pass.

    Attributes:
        raw: float32 [B, C, H, W] in; out comes `scale` times the answer, in any floating type.
    """

    raw: Call
    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """The answer, float32."""
        out = self.raw(x).float()
        return out if self.scale == 1.0 else out / self.scale


STILL = Network(torch.zeros_like)
"""The network of chains of noise: nothing moves them."""


def scoring(
    network: nn.Module,
    device: torch.device,
    precision: CudaPrecision,
    wrap: Callable[[Call], Call],
    piece: int = 0,
) -> Network:
    """The score of a copy of a purifying network; `wrap` may compile its forward pass.

    With `piece`, energies go through our own kernels, so many chains at a time.
    """
    if piece and isinstance(network, EnergyNetwork) and fits(network):
        return Network(FusedScore(network, device, piece))
    if not isinstance(network, EnergyNetwork):
        return forward(network, device, precision, wrap, "score")
    prepared = PreparedScore(network, _TYPES[precision]).to(device)
    return Network(wrap(lambda x: prepared(x - 0.5)), prepared.scale)


def forward(
    module: nn.Module,
    device: torch.device,
    precision: CudaPrecision,
    wrap: Callable[[Call], Call],
    method: str = "forward",
) -> Network:
    """A copy's `method`.  Nobody has proved these networks in float16's range: they get bfloat16 there."""
    dtype = torch.bfloat16 if precision == "f16" else _TYPES[precision]
    own = copy.deepcopy(module).eval().requires_grad_(False).to(device, dtype)
    own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run: Call = getattr(own, method)
    return Network(wrap(lambda x: run(x.to(dtype))))


def as_it_is(call: Call) -> Call:
    """A pass that is not compiled."""
    return call


def compiled(call: Call, backend: str = "inductor") -> Call:
    """`call` through torch.compile: once for a batch of one, and once for all other sizes.

    Only the batch is marked as open: with other axes open too, the kernels would be those of any image.
    """
    joined = torch.compile(call, backend=backend)

    def run(x: Tensor) -> Tensor:
        if len(x) > 1:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        return joined(x)

    return run
