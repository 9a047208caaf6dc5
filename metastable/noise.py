"""Random numbers of one chain, independent of its neighbours in the batch.

The noise of chain c at step t of a request with seed k is a Philox 4x64 stream with key k (128
bits) and counter (0, 0, c, t): a pure function of those three numbers.  Batch size, batch order
and the number of other chains change nothing, and any step can be drawn without the ones before.

A GPU makes other normals of the same words (`metastable.cuda_noise`): equal keys give equal noise on one
kind of device, not on both.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from metastable import cuda_noise
from metastable.cuda_noise import SEED_BITS as SEED_BITS

ChainKey = tuple[int, int]  #: (request seed, chain number)


def secret_seed() -> int:
    """A seed that nobody can predict; known noise would let an attacker aim at one fixed path."""
    return secrets.randbits(SEED_BITS)


def normal(
    keys: Sequence[ChainKey],
    step: int | Sequence[int],
    shape: tuple[int, ...],
    device: torch.device | None = None,
) -> Tensor:
    """Standard normal float32 [len(keys), *shape], row i drawn for chain keys[i] at its step.

    Args:
        step: the step of all rows, or one for each.
        shape: of a row; (C, H, W) on a GPU.
        device: where the rows are drawn, and left; None is the CPU.

    Raises ValueError for a seed outside [0, 2^128), a negative chain or step, or steps that are not
    as many as the keys.
    """
    steps = [step] * len(keys) if isinstance(step, int) else step
    if device is not None and device.type == "cuda":
        c, h, w = shape
        return cuda_noise.draw(cuda_noise.pack(keys, steps).to(device), (c, h, w))
    out = np.empty((len(keys), *shape), np.float32)
    philox = np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    for row, (seed, chain), t in zip(out, keys, steps, strict=True):
        if not 0 <= seed < 1 << SEED_BITS or chain < 0 or t < 0:
            raise ValueError("a seed lies in [0, 2^128); chains and steps count from 0")
        # A fresh generator for every row would cost a fifth of the drawing.
        state["state"]["key"][:] = seed & 0xFFFFFFFFFFFFFFFF, seed >> 64
        state["state"]["counter"][:] = 0, 0, chain, t
        philox.state = state
        generator.standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(out)


def stream(keys: Sequence[ChainKey], shape: tuple[int, ...], device: torch.device) -> Callable[[int], Tensor]:
    """step -> `normal(keys, step, shape, device)`; for a GPU the keys are packed and sent there once."""
    if device.type != "cuda":
        return lambda step: normal(keys, step, shape).to(device)
    c, h, w = shape
    rows = cuda_noise.pack(keys, [0] * len(keys)).to(device)

    def drawn(step: int) -> Tensor:
        return cuda_noise.draw(cuda_noise.at(rows, step), (c, h, w))

    return drawn
