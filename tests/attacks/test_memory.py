"""What the exact gradient keeps for its way back."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metastable.attacks.target import Eot, WhiteBox
from metastable.settings import Setting
from tests.attacks.planted import SHAPE, Prototypes, gradient_of, score_network

pytestmark = pytest.mark.slow


class LivePeak(TorchDispatchMode):
    """The greatest number of bytes that tensors made inside hold at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._freed, key, size)
        return out


def saved_bytes(target: Any, x: Tensor, labels: Tensor) -> int:
    """Bytes that autograd keeps after the forward pass."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.nn.functional.cross_entropy(target(x.clone().requires_grad_(True)), labels)
    return kept


def test_memory_is_nearly_flat_in_the_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for the way back: states, a segment's worth, and never a network's activations."""
    model = Prototypes()
    images, labels = model.images(1)
    state = 4 * math.prod(SHAPE)

    def kept_and_peak(dynamics: str, steps: int) -> tuple[float, float]:
        """In states: kept after the forward pass, and the most that forward and backward held at once."""
        setting = Setting.of("m", dynamics, steps=steps)
        target = Eot(WhiteBox(setting, model, score_network().score), samples=1, gradient="exact")
        with LivePeak() as mode:
            gradient_of(target, images, labels)
        return saved_bytes(target, images, labels) / state, mode.peak / state

    few, many = kept_and_peak("langevin", 4), kept_and_peak("langevin", 100)
    assert many[0] - few[0] <= 10  # 100 steps are 10 segments, of which the starts are kept
    assert many[1] - few[1] <= 30
    few, many = kept_and_peak("adp", 4), kept_and_peak("adp", 10)
    assert many[0] - few[0] <= 6 * 10  # its arithmetic keeps a few states a step
    # Both measures see what they should: without checkpointing the same steps keep activations.
    monkeypatch.setattr("metastable.attacks.target._recompute", lambda function, *args: function(*args))
    for plain in (kept_and_peak("langevin", 100), kept_and_peak("adp", 10)):
        assert plain[0] > 1000
        assert plain[1] > 300
