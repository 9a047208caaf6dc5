"""The runner on PyTorch: no export and no optional package, and the reference for the others."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metastable import noise
from metastable.engine.graphs import AdpUpdate, LangevinSegment, columns
from metastable.engine.runners import Batch, Kind


class TorchRunner:
    """See `metastable.engine.runners.Runner`.

    Args:
        networks: the purifying networks by name; each has a method `score`.
        classifier: images to logits.
        device: `cpu`, or a CUDA device; batches come and go on the CPU.
        dtype: of weights and convolutions.  States, noise and the arithmetic of a step are float32
            always; below float32 ADP's adaptive step size loses its meaning (`metastable.engine.graphs`).

    The modules given are not changed: a copy is laid out channels last and cast.
    """

    name = "torch"

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        classifier: nn.Module,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._device, self._dtype = torch.device(device), dtype
        self._networks = {name: _Cast(self._prepared(n), "score") for name, n in networks.items()}
        self._classifier = _Cast(self._prepared(classifier), "forward")

    @torch.inference_mode()
    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        x = self._moved(batch.x)
        parameters = [column.to(self._device) for column in columns(batch.parameters)]
        network = self._networks[kind.network]
        if kind.dynamics == "langevin":
            shape = tuple(x.shape[1:])
            step = LangevinSegment(network, 1)
            for t in range(steps):
                z = noise.normal(batch.keys, [first + t for first in batch.steps], shape)
                x = step(x, *parameters, self._moved(z)[None])
            return _back(x), torch.full((len(x),), steps)
        update = AdpUpdate(network, adaptive=kind.adaptive)
        moved = torch.zeros(len(x), device=self._device)
        for _ in range(steps):
            x, going = update(x, *parameters)
            moved += going
        return _back(x), moved.long().cpu()

    @torch.inference_mode()
    def score(self, network: str, x: Tensor) -> Tensor:
        return _back(self._networks[network].score(self._moved(x)))

    @torch.inference_mode()
    def classify(self, x: Tensor) -> Tensor:
        return _back(self._classifier.score(self._moved(x)))

    def _prepared(self, module: nn.Module) -> nn.Module:
        own = copy.deepcopy(module).eval().requires_grad_(False).to(self._device, self._dtype)
        own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return own

    def _moved(self, x: Tensor) -> Tensor:
        return x.to(self._device, memory_format=torch.channels_last)


class _Cast(nn.Module):
    """A network's `method` under the name `score`: float32 in and out, whatever its own type."""

    def __init__(self, inner: nn.Module, method: str) -> None:
        super().__init__()
        self._run = getattr(inner, method)
        self._dtype = next(inner.parameters()).dtype

    def score(self, x: Tensor) -> Tensor:
        out: Tensor = self._run(x.to(self._dtype)).float()
        return out


def _back(x: Tensor) -> Tensor:
    return x.cpu().contiguous()
