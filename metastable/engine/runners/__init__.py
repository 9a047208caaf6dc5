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

from metastable.dynamics.base import Kind, Row
from metastable.noise import ChainKey


@dataclass
class Batch:
    """Chains of one kind.

    Attributes:
        x: states, float32 [B, C, H, W] in [0, 1] units.
        keys: (request seed, chain number) of every row.
        steps: number of the next step of every row: noise is keyed by it.
        parameters: of every row, as its dynamics gives them.
        packed: keys and steps once more, as `cuda_noise.pack` makes them, on the CPU; None where nobody
            has packed them yet.  Thousands of keys take longer to pack than some steps of their chains.
    """

    x: Tensor
    keys: Sequence[ChainKey]
    steps: Sequence[int]
    parameters: Sequence[Row]
    packed: Tensor | None = None

    def part(self, start: int, size: int) -> Batch:
        """The `size` chains from row `start` on."""
        here = slice(start, start + size)
        packed = None if self.packed is None else self.packed[:, here]
        return Batch(self.x[here], self.keys[here], self.steps[here], self.parameters[here], packed)


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
