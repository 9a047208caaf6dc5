"""Triton kernels of a noisy step: noise drawn where it is added.

Needs the package triton, so `cuda_noise` imports this only where tensors are on a GPU.  With
TRITON_INTERPRET=1 in the environment the same code runs on the CPU, slowly (`metastable bench gpu correct`
proves its bits so).
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCKS = 128  # of Philox a program draws: 1 024 normals, 8 for each of 128 threads


def update(x: Tensor, score: Tensor, factors: Tensor, rows: Tensor, later: int) -> None:
    """`cuda_noise.update` in one launch: x and the score are read once, x is written once."""
    size = x[0].numel()
    grid = (len(x), triton.cdiv(size, 8 * BLOCKS))
    _update[grid](x, score, factors, rows, later, size, rows.stride(0), BLOCKS=BLOCKS)


def words(rows: Tensor, out: Tensor) -> None:
    """The Philox words of `cuda_noise.words` into int64 out [B, 4 n], bit patterns of unsigned ones."""
    count = out.shape[1] // 4
    grid = (len(out), triton.cdiv(count, BLOCKS))
    _words[grid](rows, out, count, rows.stride(0), BLOCKS=BLOCKS)


@triton.jit
def _draw(rows, row, later, stride, block):
    """Four uint64 words of each block of the stream of one row."""
    low = tl.load(rows + row).to(tl.uint64, bitcast=True)
    high = tl.load(rows + stride + row).to(tl.uint64, bitcast=True)
    chain = tl.load(rows + 2 * stride + row).to(tl.uint64, bitcast=True)
    step = (tl.load(rows + 3 * stride + row) + later).to(tl.uint64, bitcast=True)
    counter = (block + 1).to(tl.uint64)  # NumPy counts up before it draws
    zero = counter - counter
    return tl.philox_impl(counter, zero, zero + chain, zero + step, low, high)


@triton.jit
def _pair(word):
    """Two normals of one word (Box and Muller 1958), as `cuda_noise.box_muller`."""
    radius = (word & 0xFFFFFFFF).to(tl.uint32).to(
        tl.float32
    ) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    angle = (word >> 32).to(tl.uint32).to(tl.float32) * 1.4629180792671596e-09
    # The fast logarithm of a number next to 1 may be above 0.
    length = tl.sqrt(tl.maximum(-2.0 * tl.log(radius), 0.0))
    return length * tl.cos(angle), length * tl.sin(angle)


@triton.jit(do_not_specialize=["later"])
def _update(x, score, factors, rows, later, size, stride, BLOCKS: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    a, b, c, d = _draw(rows, row, later, stride, tile * BLOCKS + tl.arange(0, BLOCKS))
    n0, n1 = _pair(a)
    n2, n3 = _pair(b)
    n4, n5 = _pair(c)
    n6, n7 = _pair(d)
    # Into the order 0 to 7 of each block: a thread then holds 8 neighbours, and reads 16 bytes at a time.
    even = tl.interleave(tl.interleave(n0, n4), tl.interleave(n2, n6))
    odd = tl.interleave(tl.interleave(n1, n5), tl.interleave(n3, n7))
    noise = tl.interleave(even, odd)
    at = tile * 8 * BLOCKS + tl.arange(0, 8 * BLOCKS)
    here = at < size
    share, strength = tl.load(factors + row), tl.load(factors + stride + row)
    state = tl.load(x + row * size + at, mask=here)
    drift = tl.load(score + row * size + at, mask=here).to(tl.float32)
    tl.store(x + row * size + at, state + share * drift + strength * noise, mask=here)


@triton.jit
def _words(rows, out, count, stride, BLOCKS: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    block = tile * BLOCKS + tl.arange(0, BLOCKS)
    a, b, c, d = _draw(rows, row, 0, stride, block)
    at, here = out + (row * count + block) * 4, block < count
    tl.store(at, a.to(tl.int64, bitcast=True), mask=here)
    tl.store(at + 1, b.to(tl.int64, bitcast=True), mask=here)
    tl.store(at + 2, c.to(tl.int64, bitcast=True), mask=here)
    tl.store(at + 3, d.to(tl.int64, bitcast=True), mask=here)
