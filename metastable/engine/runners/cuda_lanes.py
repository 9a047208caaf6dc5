"""What the CUDA runner replays: buffers of one size, and the graphs that work on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from metastable import cuda_noise
from metastable.engine.graphs import AdpUpdate, columns
from metastable.engine.runners import Batch, Kind
from metastable.engine.runners.cuda_graphs import Recording
from metastable.engine.runners.cuda_networks import Network
from metastable.engine.runners.stepping import Score

SEGMENT = 16  # steps of the longer graph
Record = Callable[[Callable[[], None]], Recording]


class Lane:
    """Batches of one kind and size: buffers, and the graphs of one step and of a segment on them.

    Args:
        network: gives the score.
        ahead: of `graphs.AdpUpdate`.
        x: the buffer of states, [size, C, H, W], channels last.
        record: makes a Recording.
    """

    def __init__(self, kind: Kind, network: Network, ahead: float | None, x: Tensor, record: Record) -> None:
        self._kind, self._x, self._network = kind, x, network
        self._rows = torch.zeros(cuda_noise.FIELDS, len(x), dtype=torch.int64, device=x.device)
        width = 4 if kind.dynamics == "adp" else 2
        self._columns = torch.zeros(width, len(x), device=x.device)
        self._moved = torch.zeros(len(x), device=x.device)
        self._adp = AdpUpdate(Score(network), adaptive=kind.adaptive, ahead=ahead)
        # Both at once: what is measured when an engine starts is all that it will ever need.
        self._graphs = {length: record(partial(self._advance, length)) for length in (1, SEGMENT)}

    @property
    def recordings(self) -> int:
        return len(self._graphs)

    def load(self, batch: Batch) -> None:
        """Put chains into the first rows; the rows behind them hold what was there before."""
        size, device = len(batch.x), self._x.device
        packed = cuda_noise.pack(batch.keys, batch.steps) if batch.packed is None else batch.packed
        self._x[:size] = batch.x.to(device)
        self._rows[:, :size] = packed.to(device)
        self._columns[:, :size] = _factors(self._kind, batch, self._network.scale).to(device)
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
            if self._kind.dynamics == "adp":
                x, going = self._adp(self._x, *self._columns)
                self._x.copy_(x)
                self._moved += going
                continue
            cuda_noise.update(self._x, self._network.raw(self._x), self._columns, self._rows, t)
            if self._kind.dynamics == "noise":
                self._x.clamp_(0, 1)
        if self._kind.dynamics != "adp":
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


def _factors(kind: Kind, batch: Batch, scale: float) -> Tensor:
    """What a lane keeps of chains, [width, B]: ADP's parameters, or the factors of `cuda_noise.update`.

    Those are of a score that comes `scale` times too large.
    """
    given = columns(batch.parameters)
    match kind.dynamics:
        case "adp":
            return torch.stack(given)
        case "langevin":
            share, strength = 0.5 * given[0] ** 2, given[0]
        case "noise":
            share, strength = torch.zeros_like(given[0]), given[0]
        case _:
            share, strength = given
    return torch.stack([share / scale, strength])
