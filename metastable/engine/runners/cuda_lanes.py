"""What the CUDA runner replays: buffers of one size, and the graphs that work on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from metastable import cuda_noise
from metastable.dynamics.base import Adaptation, Kind, columns, no_noise
from metastable.engine.runners import Batch
from metastable.engine.runners.cuda_graphs import Recording
from metastable.engine.runners.cuda_networks import Network

SEGMENT = 16  # steps of the longer graph
Record = Callable[[Callable[[], None]], Recording]


class Lane:
    """Batches of one kind and size: buffers, and the graphs of one step and of a segment on them.

    Args:
        network: gives the score.
        ahead: how far an adaptive step looks ahead, as in `Adaptation`.
        x: the buffer of states, [size, C, H, W], channels last.
        record: makes a Recording.
    """

    def __init__(self, kind: Kind, network: Network, ahead: float | None, x: Tensor, record: Record) -> None:
        self._kind, self._x, self._network = kind, x, network
        self._rows = torch.zeros(cuda_noise.FIELDS, len(x), dtype=torch.int64, device=x.device)
        width = len(_kept(kind, columns([kind.probe]), network.scale))
        self._columns = torch.zeros(width, len(x), device=x.device)
        self._moved = torch.zeros(len(x), device=x.device)
        # Where a step is a drift, one kernel draws the noise and makes it.
        self._drifts, self._adapt = kind.factors(columns([kind.probe])) is not None, Adaptation(ahead)
        if not self._drifts and kind.draws:
            raise RuntimeError(f"no kernel draws the noise of {kind.name}: choose the runner torch")
        # Both at once: what is measured when an engine starts is all that it will ever need.
        self._graphs = {length: record(partial(self._advance, length)) for length in (1, SEGMENT)}

    @property
    def recordings(self) -> int:
        return len(self._graphs)

    def load(self, batch: Batch) -> None:
        """Put chains into the first rows; the rows behind them hold what was there before."""
        size, device = len(batch.x), self._x.device
        packed = cuda_noise.pack(batch.keys, batch.next_steps) if batch.packed is None else batch.packed
        self._x[:size] = batch.x.to(device)
        self._rows[:, :size] = packed.to(device)
        self._columns[:, :size] = _kept(self._kind, batch.columns(device), self._network.scale)
        self._moved.zero_()

    def run(self, steps: int) -> None:
        """Advance all rows; asynchronous on a GPU."""
        for length, count in ((SEGMENT, steps // SEGMENT), (1, steps % SEGMENT)):
            for _ in range(count):
                self._graphs[length].replay()

    def read(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """States [size, C, H, W] on `device`, steps moved, int64 [size], on the CPU; keys are forgotten."""
        x, moved = returned(self._x[:size], device), self._moved[:size].long().cpu()
        self._rows.zero_()
        return x, moved

    def _advance(self, steps: int) -> None:
        """What a graph repeats."""
        for t in range(steps):
            if self._drifts:
                cuda_noise.update(self._x, self._network.raw(self._x), self._columns, self._rows, t)
                if self._kind.clips:
                    self._x.clamp_(0, 1)
                continue
            given = list(self._columns)
            x, moved = self._kind.step(self._x, self._network, given, no_noise, self._adapt)
            self._x.copy_(x)
            self._moved += moved
        if self._drifts:
            self._moved += steps
        self._rows[3] += steps


class Pass:
    """A forward pass of one network for one size of batches.

    Args:
        x: the buffer of its input.
    """

    def __init__(self, network: Network, x: Tensor, record: Record) -> None:
        self._x, self._out = x, torch.empty_like(network(x))
        self._recording = record(lambda: self._fill(network))

    def __call__(self, x: Tensor, device: torch.device) -> Tensor:
        """What the network makes of x [B, C, H, W], on `device`."""
        self._x[: len(x)] = x.to(self._x.device)
        self._recording.replay()
        return returned(self._out[: len(x)], device)

    def _fill(self, network: Network) -> None:
        self._out.copy_(network(self._x))


def returned(x: Tensor, device: torch.device) -> Tensor:
    """A contiguous copy of rows of a buffer, on `device`; images are laid out anew where they are now."""
    own = x.clone(memory_format=torch.contiguous_format)
    if not own.is_cuda or device.type == "cuda":
        return own
    host = torch.empty(own.shape, dtype=own.dtype, pin_memory=True)
    host.copy_(own, non_blocking=True)
    torch.cuda.current_stream(own.device).synchronize()
    return host


def _kept(kind: Kind, given: list[Tensor], scale: float) -> Tensor:
    """What a lane keeps of chains, [width, B]: the factors of `cuda_noise.update`, else their parameters.

    The factors are of a score that comes `scale` times too large.
    """
    factors = kind.factors(given)
    if factors is None:
        return torch.stack(given)
    share, strength = factors
    return torch.stack([share / scale, strength])
