"""The noise of a chain on a GPU: a function of its key and step, as `metastable.noise` has it.

The words are those of `metastable.noise`: the Philox 4x64 stream (Salmon et al. 2011) with the request's
seed as its key, from counter (0, 0, chain, step).  What is made of them differs.  NumPy's normals come
from rejection, where the place of a word depends on all before it; here every word gives two normals
(Box and Muller 1958), so that thousands of threads draw at once.  Normals are laid out as channels-last
images lie in memory: position (h, w, c) takes number (h W + w) C + c.

Tensors on a GPU are updated by a Triton kernel; those on the CPU by the NumPy reference that the kernel
is held against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SEED_BITS = 128
FIELDS = 4
"""Rows of a packed key: low and high half of the seed, chain, step."""

_HALF = 0xFFFFFFFFFFFFFFFF
_UNIT = np.float32(2.0**-32)
_TURN = np.float32(2.0 * np.pi * 2.0**-32)


def pack(keys: Sequence[tuple[int, int]], steps: Sequence[int]) -> Tensor:
    """Keys and steps of B chains as int64 [FIELDS, B], bit patterns of unsigned numbers.

    Raises ValueError for a seed outside [0, 2^128), a negative chain or step, or steps that are not
    as many as the keys.
    """
    columns = []
    for (seed, chain), step in zip(keys, steps, strict=True):
        if not 0 <= seed < 1 << SEED_BITS or chain < 0 or step < 0:
            raise ValueError("a seed lies in [0, 2^128); chains and steps count from 0")
        columns.append((seed & _HALF, seed >> 64, chain, step))
    packed = np.array(columns, np.uint64).reshape(-1, FIELDS).T
    return torch.from_numpy(np.ascontiguousarray(packed).view(np.int64))


def at(rows: Tensor, step: int) -> Tensor:
    """The packed keys [FIELDS, B] with another step, the same for all."""
    moved = rows.clone()
    moved[3] = step
    return moved


def words(rows: Tensor, count: int) -> np.ndarray:
    """The first `count` uint64 words of the stream of every packed key [FIELDS, B]: [B, count]."""
    out = np.empty((rows.shape[1], count), np.uint64)
    philox = np.random.Philox(key=0)
    state = philox.state
    for row, (low, high, chain, step) in zip(out, rows.cpu().numpy().view(np.uint64).T, strict=True):
        state["state"]["key"][:] = low, high
        state["state"]["counter"][:] = 0, 0, chain, step
        philox.state = state
        row[:] = philox.random_raw(count)
    return out


def box_muller(words: np.ndarray) -> np.ndarray:
    """uint64 words [..., n] -> float32 normals [..., 2 n], in the arithmetic of the kernel.

    The lower half of a word gives the radius, from a uniform number of (0, 1]; the upper the angle.
    """
    uniform = (words & np.uint64(0xFFFFFFFF)).astype(np.float32) * _UNIT + np.float32(0.5) * _UNIT
    angle = (words >> np.uint64(32)).astype(np.float32) * _TURN
    length = np.sqrt(np.float32(-2.0) * np.log(uniform))
    pairs = np.stack([length * np.cos(angle), length * np.sin(angle)], -1)
    return pairs.reshape(*words.shape[:-1], -1)


def normal(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The reference: standard normal float32 [B, C, H, W], channels last, of every packed key."""
    c, h, w = shape
    # Whole blocks of four words, as the kernel draws them.
    drawn = box_muller(words(rows, -(-c * h * w // 8) * 4))[:, : c * h * w]
    return torch.from_numpy(drawn.reshape(-1, h, w, c)).permute(0, 3, 1, 2)


def draw(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """`normal` on the device of the packed keys, drawn there.

    Raises RuntimeError on a GPU where Triton is not installed.
    """
    c, h, w = shape
    x = torch.zeros(rows.shape[1], h, w, c, device=rows.device).permute(0, 3, 1, 2)
    factors = torch.zeros(2, len(x), device=rows.device)
    factors[1] = 1.0
    update(x, x, factors, rows, 0)
    return x


def update(x: Tensor, score: Tensor, factors: Tensor, rows: Tensor, later: int) -> None:
    """A noisy step of every chain, in place: x + a s(x) + b z.

    With (a, b) = (tau^2 / 2, tau) it is Langevin's (Hill 2021, eq. 3).

    Args:
        x: float32 [B, C, H, W], channels last.
        score: s(x); float32 or bfloat16.
        factors: a and b of every chain, float32 [2, B], contiguous.
        rows: packed keys int64 [FIELDS, B], contiguous, with the step of the first of some steps.
        later: how many steps after that one this is.

    Raises RuntimeError for tensors on a GPU where Triton is not installed.
    """
    if x.is_cuda:
        try:
            from metastable import cuda_kernels
        except ImportError as error:
            raise RuntimeError("noise on a GPU needs the package triton: install it") from error
        cuda_kernels.update(x, score.contiguous(memory_format=torch.channels_last), factors, rows, later)
        return
    moved = rows.clone()
    moved[3] += later
    share, strength = factors.view(2, -1, 1, 1, 1)
    z = normal(moved, (x.shape[1], x.shape[2], x.shape[3]))
    x.copy_(x + share * score.float() + strength * z)
