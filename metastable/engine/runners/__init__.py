"""Runners: what advances a batch of chains, and classifies, on one backend.

A runner is made for one bundle.  Chains in a batch share a `Kind`; everything else (parameters,
seeds, the number of the next step) may differ from row to row.  The path of a chain is a function
of its key and its parameters: not of the batch, its size, or how many steps a call takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metastable.dynamics.base import Kind, Row, columns
from metastable.noise import ChainKey


@dataclass(slots=True)
class Batch:
    """Chains of one kind.

    Attributes:
        x: states, float32 [B, C, H, W] in [0, 1] units.
        keys: (request seed, chain number) of every row.
        next_steps: number of the next step of every row: noise is keyed by it.
        parameters: of every row, as its dynamics gives them.
        packed, held: keys and steps once more, as `cuda_noise.pack` makes them, and parameters [width, B], as
            tensors where the states are; None where nobody has made them yet.  To make them of thousands of
            chains takes longer than some of their steps.
    """

    x: Tensor
    keys: Sequence[ChainKey]
    next_steps: Sequence[int]
    parameters: Sequence[Row]
    packed: Tensor | None = None
    held: Tensor | None = None

    def part(self, start: int, size: int) -> Batch:
        """The `size` chains from row `start` on."""
        here = slice(start, start + size)
        packed, held = (None if t is None else t[:, here] for t in (self.packed, self.held))
        return Batch(
            self.x[here], self.keys[here], self.next_steps[here], self.parameters[here], packed, held
        )

    def columns(self, device: torch.device) -> list[Tensor]:
        """The parameters, each a tensor [B] on `device`."""
        if self.held is None:
            return [column.to(device) for column in columns(self.parameters)]
        return list(self.held.to(device).unbind(0))


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Abilities:
    """What callers should know of a runner.

    Attributes:
        exact: its answers are float32's, and not of a type with fewer bits.
        device: where states had best stay between calls.
        sizes: of batches whose cost an engine should know; empty where the caller knows better.
    """

    exact: bool
    device: torch.device = CPU
    sizes: tuple[int, ...] = ()


class Runner(Protocol):
    """Advances and classifies.  Images and states come on the CPU, or on the device of the abilities.

    Methods raise RuntimeError when the backend fails.
    """

    name: str
    abilities: Abilities

    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        """`steps` fused steps of every chain: states [B, C, H, W], and steps moved, int64 [B].

        The states are where the batch's were, the steps moved on the CPU.  A chain of ADP that moved
        fewer than `steps` has stopped for good.
        """
        ...

    def score(self, network: str, x: Tensor) -> Tensor:
        """The score of x [B, C, H, W] in [0, 1] units, same shape, where x is."""
        ...

    def classify(self, x: Tensor) -> Tensor:
        """Logits [B, classes], float32 on the CPU, of images x [B, C, H, W] in [0, 1]."""
        ...
