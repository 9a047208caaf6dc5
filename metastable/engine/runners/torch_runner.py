"""The runner on PyTorch: no export and no optional package, and the reference for the others."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metastable.dynamics.base import Kind
from metastable.engine.precision import Precision, ahead_of
from metastable.engine.runners import Abilities, Batch
from metastable.engine.runners.stepping import Call, Stepper


class TorchRunner:
    """See `metastable.engine.runners.Runner`.

    Args:
        networks: the purifying networks by name; each has a method `score`.
        classifier: images to logits.
        device: `cpu`, or a CUDA device; batches come and go on the CPU.
        precision: of weights and convolutions, `f32` or `bf16`.  States, noise and the arithmetic of a
            step are float32.

    The modules given are not changed: a copy is laid out channels last and cast.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        classifier: nn.Module,
        *,
        device: str = "cpu",
        precision: Precision = "f32",
    ) -> None:
        self.name = "torch" if precision == "f32" else f"torch-{precision}"
        self.abilities = Abilities(exact=precision == "f32")
        self._device, self._dtype = torch.device(device), _TYPES[precision]
        ahead = ahead_of(precision)
        self._steppers = {k: Stepper(self._call(n, "score"), ahead) for k, n in networks.items()}
        self._steppers[""] = Stepper(torch.zeros_like)  # for chains of noise, which no network moves
        self._classifier = self._call(classifier, "forward")

    def advance(self, kind: Kind, batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
        x, moved = self._steppers[kind.network].advance(kind, batch, steps, self._moved(batch.x))
        return _back(x), moved

    @torch.inference_mode()
    def score(self, network: str, x: Tensor) -> Tensor:
        return _back(self._steppers[network].score(self._moved(x)))

    @torch.inference_mode()
    def classify(self, x: Tensor) -> Tensor:
        return _back(self._classifier(self._moved(x)))

    def _call(self, module: nn.Module, method: str) -> Call:
        """A copy's `method`, float32 in and out."""
        own = copy.deepcopy(module).eval().requires_grad_(False).to(self._device, self._dtype)
        own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run: Call = getattr(own, method)
        return lambda x: run(x.to(self._dtype)).float()

    def _moved(self, x: Tensor) -> Tensor:
        return x.to(self._device, memory_format=torch.channels_last)


_TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def _back(x: Tensor) -> Tensor:
    return x.cpu().contiguous()
