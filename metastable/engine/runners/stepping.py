"""The steps of a batch on any score function: what runners share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metastable import noise
from metastable.dynamics.base import Adaptation, Kind
from metastable.engine.runners import Batch

Call = Callable[[Tensor], Tensor]
"""One forward pass of a network: float32 [B, C, H, W] in, float32 out."""


class Stepper:
    """Advances chains with one network.

    Args:
        score: of the network.
        ahead: how far an adaptive step looks ahead, as in `Adaptation`.
    """

    def __init__(self, score: Call, ahead: float | None = None) -> None:
        self.score, self._adapt = score, Adaptation(ahead)

    @torch.inference_mode()
    def advance(self, kind: Kind, batch: Batch, steps: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Runner.advance`; x is the batch's state, on the device and in the layout of the score."""
        shape, draws, device = tuple(x.shape[1:]), kind.draws, x.device
        parameters = batch.columns(device)
        made = torch.zeros(len(x), device=device)
        for t in range(steps):

            def normal(draw: int, t: int = t) -> Tensor:
                numbers = [(first + t) * draws + draw for first in batch.next_steps]
                return noise.normal(batch.keys, numbers, shape).to(device)

            x, moved = kind.step(x, self.score, parameters, normal, self._adapt)
            made += moved
        return x, made.long().cpu()
