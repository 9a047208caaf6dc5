"""The steps of a batch on any score function: what runners share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metastable import noise
from metastable.dynamics.adp import inject
from metastable.dynamics.malade import malade_step
from metastable.dynamics.reconstruction import reconstruct
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
        if kind.dynamics == "adp":
            moved = torch.zeros(len(x), device=x.device)
            for _ in range(steps):
                x, going = self._adp[kind.adaptive](x, *parameters)
                moved += going
            return x, moved.long().cpu()
        for t in range(steps):
            x = self._noisy(kind, batch, x, parameters, t)
        return x, torch.full((len(x),), steps)

    def _noisy(self, kind: Kind, batch: Batch, x: Tensor, parameters: list[Tensor], t: int) -> Tensor:
        """The chains' step `t` of this call, of a dynamics that draws noise in every step."""

        def normal(draw: int = 0, draws: int = 1) -> Tensor:
            numbers = [(first + t) * draws + draw for first in batch.steps]
            return noise.normal(batch.keys, numbers, tuple(x.shape[1:])).to(x.device)

        if kind.dynamics == "langevin":
            return self._langevin(x, *parameters, normal()[None])  # type: ignore[no-any-return]
        if kind.dynamics == "noise":
            return inject(x, parameters[0], normal())
        wide = [column.view(-1, 1, 1, 1) for column in parameters]
        if kind.dynamics == "drift":
            return malade_step(x, self.score(x), wide[0], wide[1], normal())
        rate, tau, eta = wide
        return reconstruct(
            x,
            self.score,
            walk=kind.walk,
            iterations=kind.iterations,
            rate=rate,
            tau=tau,
            eta=eta,
            noise=lambda draw: normal(draw, kind.walk + 1),
        )
