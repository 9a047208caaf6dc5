"""An energy's score in eight launches of our own kernels, for batches of any size.

Between a library's convolutions lie some twenty kernels that do next to nothing, each a pass over
activations; here what follows a convolution is part of it.  A batch is cut into pieces whose activations
stay in the cache of the device.  With the update of `cuda_noise`, a Langevin step is nine launches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from metastable.networks.energy import EnergyNetwork
from metastable.networks.energy_prepared import SCALE

CACHE = 50_000_000  # bytes of the second-level cache of an H100
PIECE = 384
"""Chains whose activations, 123 KB each for 32 features on 3x32x32, fit into CACHE."""
TRIES = 10  # launches of a tile that is timed


@dataclass(frozen=True)
class Tile:
    """How much of a product a program makes: positions, channels, and how deep at a time.

    `warps` make it together, and `stages` parts are on their way from memory at a time.
    """

    positions: int
    channels: int
    depth: int = 64
    warps: int = 4
    stages: int = 3


TILES = (Tile(128, 64), Tile(64, 64, stages=4), Tile(128, 128, warps=8), Tile(64, 128))
"""What a product may be cut into, the safest first.  On a GPU the fastest is found by trial."""


def tiles(inner: int, outer: int) -> list[Tile]:
    """What a product of `inner` channels to `outer` may be cut into, each once."""
    return list(
        dict.fromkeys(replace(t, channels=min(t.channels, outer), depth=min(t.depth, inner)) for t in TILES)
    )


def fits(network: nn.Module) -> bool:
    """Whether the kernels have been written for this network; its images must be multiples of 8 high."""
    if not isinstance(network, EnergyNetwork) or not network.piecewise or network.wall:
        return False
    features, channels = _weights(network)[0].shape[:2]
    return features in (16, 32, 64) and channels <= 3


class FusedScore:
    """The score of an EnergyNetwork as it was when this was made, or refreshed.

    Args:
        network: for which `fits` holds.
        device: a GPU, or the CPU where Triton interprets.
        piece: chains that are worked on together.
    """

    def __init__(self, network: EnergyNetwork, device: torch.device, piece: int = PIECE) -> None:
        self._slope, self._piece, self._device = network.slope, piece, device
        self.features, self.channels = (int(n) for n in _weights(network)[0].shape[:2])
        n, c, final = self.features, self.channels, network.last.weight.shape[-1]
        depth = max(16, 1 << (9 * c - 1).bit_length())

        def half(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float16, device=device)

        self._first, self._final = half(depth, n), half(3, 3, n, 16)
        self._down = [half(4, 4, n << i, n << i + 1) for i in range(3)]
        self._up = [half(4, 4, n << i + 1, n << i) for i in range(3)]
        self._biases = [torch.zeros(n << i, device=device) for i in range(4)]
        self._top = half(final, final, n << 3)
        self.refresh(network)
        self._buffers: dict[int, list[Tensor]] = {}
        self._chosen: dict[tuple[str, int, int], Tile] = {}
        self._tried = False

    @torch.no_grad()
    def refresh(self, network: EnergyNetwork) -> None:
        """Take the weights that the network has now, in place: a recorded graph goes on with them."""
        weights, c = _weights(network), self.channels
        self._first[: 9 * c].copy_(2 * weights[0].permute(2, 3, 1, 0).reshape(9 * c, -1))
        self._final[..., :c].copy_(weights[0].flip(2, 3).permute(2, 3, 0, 1))
        for i, weight in enumerate(weights[1:]):  # [CO, CI, ky, kx]
            self._down[i].copy_(weight.permute(2, 3, 1, 0))
            self._up[i].copy_(weight.permute(2, 3, 0, 1))
        convolutions = [layer for layer in network.hidden if isinstance(layer, nn.Conv2d)]
        for own, layer in zip(self._biases, convolutions, strict=True):
            own.copy_(layer.bias.detach() if layer.bias is not None else torch.zeros_like(own))
        self._top.copy_(-2 * SCALE * network.last.weight[0].permute(1, 2, 0))

    def __call__(self, x: Tensor) -> Tensor:
        """-dU/dx float32 for float32 x [B, C, H, W] in [0, 1], both channels last.

        Raises RuntimeError for images of another size than the network was trained for, or of another number
        of channels, and where Triton is not installed.
        """
        _, c, h, w = x.shape
        side = 8 * self._top.shape[0]
        if (c, h, w) != (self.channels, side, side):
            raise RuntimeError(
                f"the kernels take images {self.channels} x {side} x {side}, not {c} x {h} x {w}"
            )
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        for start in range(0, len(x), self._piece):
            a, b = (t[start : start + self._piece] for t in (x, out))
            self._tried = False
            self._run(a, b)
            if self._tried:  # trials go over the same buffers again and again
                self._run(a, b)
        return out

    def _run(self, x: Tensor, out: Tensor) -> None:
        """One piece: x and out are rows of channels-last images, which lie together."""
        try:
            from metastable import cuda_convolutions as kernels
        except ImportError as error:
            raise RuntimeError("these kernels need the package triton: install it") from error

        b, c, size, _ = x.shape
        held, n, slope, whole = self._held(size), self.features, self._slope, b * size * size
        kernels.first[(_tiles(whole, 128),)](
            x, self._first, self._biases[0], held[0], whole, SIZE=size, C=c, K=len(self._first), CO=n,
            SLOPE=slope, M=128, num_warps=4,
        )  # fmt: skip
        for i in range(3):

            def down(t: Tile, i: int = i) -> None:
                side = size >> (i + 1)
                kernels.down[(_tiles(b * side * side, t.positions), (n << i + 1) // t.channels)](
                    held[i], self._down[i], self._biases[i + 1], self._top, held[i + 1], b * side * side,
                    SIZE=side, CI=n << i, CO=n << i + 1, SLOPE=slope, TOP=i == 2, M=t.positions,
                    N=t.channels, K=t.depth, num_warps=t.warps, num_stages=t.stages,
                )  # fmt: skip

            down(self._tile(("down", i, b), n << i, n << i + 1, down))
        for i in (2, 1, 0):

            def up(t: Tile, i: int = i) -> None:
                side = size >> (i + 1)
                kernels.up[(_tiles(b * side * side, t.positions), (n << i) // t.channels, 4)](
                    held[i + 1], self._up[i], held[i], b * side * side, SIZE=side, CI=n << i + 1, CO=n << i,
                    SLOPE=slope, M=t.positions, N=t.channels, K=t.depth, num_warps=t.warps,
                    num_stages=t.stages,
                )  # fmt: skip

            up(self._tile(("up", i, b), n << i + 1, n << i, up))
        kernels.last[(_tiles(whole, 128),)](
            held[0], self._final, out, whole, 1 / SCALE, SIZE=size, CI=n, C=c, N=16, M=128, num_warps=4,
            num_stages=3,
        )  # fmt: skip

    def _held(self, size: int) -> list[Tensor]:
        """Room for the activations of a piece of images of this size, which gradients then take over."""
        if size not in self._buffers:
            sides = [(size >> i, size >> i, self.features << i) for i in range(4)]
            self._buffers[size] = [
                torch.empty(self._piece, *side, dtype=torch.float16, device=self._device) for side in sides
            ]
        return self._buffers[size]

    def _tile(
        self, key: tuple[str, int, int], inner: int, outer: int, launch: Callable[[Tile], None]
    ) -> Tile:
        """How a product is cut, of `inner` channels to `outer`: found at the first use, by trial on a GPU."""
        if key not in self._chosen:
            cut = tiles(inner, outer)
            self._tried = self._device.type != "cpu"
            self._chosen[key] = _fastest(cut, launch) if self._tried else cut[0]
        return self._chosen[key]


def _weights(network: EnergyNetwork) -> list[Tensor]:
    """Of the hidden layers, [CO, CI, ky, kx] each."""
    return [layer.weight.detach() for layer in network.hidden if isinstance(layer, nn.Conv2d)]


def _tiles(positions: int, tile: int) -> int:
    return -(-positions // tile)


def _fastest(choices: list[Tile], launch: Callable[[Tile], None]) -> Tile:
    """The tile of the least time; one that the device has no room for is passed over.

    Raises RuntimeError if there is room for none.
    """
    times: dict[Tile, float] = {}
    for tile in choices:
        try:
            launch(tile)
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            for _ in range(TRIES):
                launch(tile)
            last.record()
            last.synchronize()
            times[tile] = first.elapsed_time(last)
        except Exception as error:
            if type(error).__name__ != "OutOfResources":  # Triton's own, and that may not be installed
                raise
    if not times:
        raise RuntimeError("no tile of a convolution fits into this device's shared memory")
    return min(times, key=lambda tile: times[tile])
