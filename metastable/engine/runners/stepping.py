"""The steps of a batch on any score function: what runners share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metastable import noise
from metastable.engine.graphs import AdpUpdate, LangevinSegment, columns
from metastable.engine.runners import Batch, Kind

Call = Callable[[Tensor], Tensor]
"""One forward pass of a network: float32 [B, C, H, W] in, float32 out."""


class Score(nn.Module):
    """A call under the name `score`, as the graphs want it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.score = call


class Stepper:
    """Advances chains with one network.

    Args:
        score: of the network.
        ahead: of `graphs.AdpUpdate`.
    """

    def __init__(self, score: Call, ahead: float | None = None) -> None:
        network = Score(score)
        self.score = score
        self._langevin = LangevinSegment(network, 1)
        self._adp = {
            adaptive: AdpUpdate(network, adaptive=adaptive, ahead=ahead) for adaptive in (True, False)
        }

    @torch.inference_mode()
    def advance(self, kind: Kind, batch: Batch, steps: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Runner.advance`; x is the batch's state, on the device and in the layout of the score."""
        parameters = [column.to(x.device) for column in columns(batch.parameters)]
        if kind.dynamics == "langevin":
            shape = tuple(x.shape[1:])
            for t in range(steps):
                z = noise.normal(batch.keys, [first + t for first in batch.steps], shape)
                x = self._langevin(x, *parameters, z.to(x.device)[None])
            return x, torch.full((len(x),), steps)
        moved = torch.zeros(len(x), device=x.device)
        for _ in range(steps):
            x, going = self._adp[kind.adaptive](x, *parameters)
            moved += going
        return x, moved.long().cpu()
