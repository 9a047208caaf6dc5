"""Triton kernels of an energy's score: convolutions as matrix products, with what follows them inside.

Activations are channels last, in half precision; sums are float32.  A 4x4 convolution of stride 2 is a
product of positions x (taps x input channels) with weights; its transpose is four such products, one for each
parity of the output position, of 2x2 taps each.  Channels are powers of two from 16 on.  As `cuda_kernels`,
the code runs on the CPU with TRITON_INTERPRET=1.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first(
    x, weight, bias, out, positions, SIZE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, CO: tl.constexpr,
    SLOPE: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """3x3 convolution of x - 1/2 and a LeakyReLU.

    x float32 [B, SIZE, SIZE, C]; weight [K, CO], its row 3 C ky + C kx + c, zero from 9 C on; out
    [B, SIZE, SIZE, CO].
    """
    m = tl.program_id(0) * M + tl.arange(0, M)
    n, k = tl.arange(0, CO), tl.arange(0, K)
    row, column, tap, channel = (m // SIZE) % SIZE, m % SIZE, k // C, k % C
    down, right = tap // 3 - 1, tap % 3 - 1
    y, z = row[:, None] + down[None, :], column[:, None] + right[None, :]
    inside = (y >= 0) & (y < SIZE) & (z >= 0) & (z < SIZE) & (k < 9 * C)[None, :] & (m < positions)[:, None]
    at = (m[:, None] + down[None, :] * SIZE + right[None, :]) * C + channel[None, :]
    image = tl.load(x + at, mask=inside, other=0.5) - 0.5
    total = tl.dot(image.to(weight.dtype.element_ty), tl.load(weight + k[:, None] * CO + n[None, :]))
    total += tl.load(bias + n)[None, :]
    total = tl.where(total > 0, total, SLOPE * total)
    tl.store(
        out + m[:, None] * CO + n[None, :], total.to(out.dtype.element_ty), mask=(m < positions)[:, None]
    )


@triton.jit
def down(
    x, weight, bias, top, out, positions, SIZE: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr,
    SLOPE: tl.constexpr, TOP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """4x4 convolution of stride 2 and a LeakyReLU; with TOP what comes out is `top` times the slope there.

    x [B, 2 SIZE, 2 SIZE, CI]; weight [4, 4, CI, CO], K input channels at a time; out [B, SIZE, SIZE, CO]; top
    [SIZE, SIZE, CO] is the gradient of the layer above, which is linear: all that it needs are signs.
    """
    m, n = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    image, row, column = m // (SIZE * SIZE), (m // SIZE) % SIZE, m % SIZE
    total = tl.zeros((M, N), tl.float32)
    for step in range(16 * (CI // K)):
        tap, k = step // (CI // K), (step % (CI // K)) * K + tl.arange(0, K)
        y, z = 2 * row - 1 + tap // 4, 2 * column - 1 + tap % 4
        inside = (y >= 0) & (y < 2 * SIZE) & (z >= 0) & (z < 2 * SIZE) & (m < positions)
        at = ((image * 2 * SIZE + y) * 2 * SIZE + z)[:, None] * CI + k[None, :]
        part = tl.load(x + at, mask=inside[:, None], other=0.0)
        total = tl.dot(part, tl.load(weight + (tap * CI + k)[:, None] * CO + n[None, :]), total)
    total += tl.load(bias + n)[None, :]
    if TOP:
        above = tl.load(top + (m % (SIZE * SIZE))[:, None] * CO + n[None, :]).to(tl.float32)
        total = tl.where(total > 0, above, SLOPE * above)
    else:
        total = tl.where(total > 0, total, SLOPE * total)
    tl.store(
        out + m[:, None] * CO + n[None, :], total.to(out.dtype.element_ty), mask=(m < positions)[:, None]
    )


@triton.jit
def up(
    g, weight, held, positions, SIZE: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr, SLOPE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The transpose of `down`, times the slope of the LeakyReLU below, in place of that layer's activations.

    g [B, SIZE, SIZE, CI]; weight [4, 4, CI, CO]; held [B, 2 SIZE, 2 SIZE, CO]: activations, then gradients.
    """
    m, n = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    odd_row, odd_column = tl.program_id(2) // 2, tl.program_id(2) % 2
    image, row, column = m // (SIZE * SIZE), (m // SIZE) % SIZE, m % SIZE
    total = tl.zeros((M, N), tl.float32)
    for step in range(4 * (CI // K)):
        tap, k = step // (CI // K), (step % (CI // K)) * K + tl.arange(0, K)
        y, z = row + odd_row - tap // 2, column + odd_column - tap % 2
        inside = (y >= 0) & (y < SIZE) & (z >= 0) & (z < SIZE) & (m < positions)
        part = tl.load(
            g + ((image * SIZE + y) * SIZE + z)[:, None] * CI + k[None, :], mask=inside[:, None], other=0.0
        )
        # Row 2 r + p of the output is row r + p - d of the input under tap 1 - p + 2 d.
        place = (1 - odd_row + 2 * (tap // 2)) * 4 + 1 - odd_column + 2 * (tap % 2)
        total = tl.dot(part, tl.load(weight + (place * CI + k)[:, None] * CO + n[None, :]), total)
    y, z = 2 * row + odd_row, 2 * column + odd_column
    at = held + ((image * 2 * SIZE + y) * 2 * SIZE + z)[:, None] * CO + n[None, :]
    below = tl.load(at, mask=(m < positions)[:, None], other=0.0)
    total = tl.where(below > 0, total, SLOPE * total)
    tl.store(at, total.to(held.dtype.element_ty), mask=(m < positions)[:, None])


@triton.jit
def last(
    g, weight, out, positions, share, SIZE: tl.constexpr, CI: tl.constexpr, C: tl.constexpr, N: tl.constexpr,
    M: tl.constexpr,
):  # fmt: skip
    """The transpose of `first`'s convolution, times `share`.

    g [B, SIZE, SIZE, CI]; weight [3, 3, CI, N], the kernel turned around, zero from channel C on; out float32
    [B, SIZE, SIZE, C].
    """
    m, n, k = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, N), tl.arange(0, CI)
    row, column = (m // SIZE) % SIZE, m % SIZE
    total = tl.zeros((M, N), tl.float32)
    for tap in range(9):
        y, z = row + tap // 3 - 1, column + tap % 3 - 1
        inside = (y >= 0) & (y < SIZE) & (z >= 0) & (z < SIZE) & (m < positions)
        at = (m + (tap // 3 - 1) * SIZE + tap % 3 - 1)[:, None] * CI + k[None, :]
        part = tl.load(g + at, mask=inside[:, None], other=0.0)
        total = tl.dot(part, tl.load(weight + (tap * CI + k)[:, None] * N + n[None, :]), total)
    here = (m < positions)[:, None] & (n < C)[None, :]
    tl.store(out + m[:, None] * C + n[None, :], share * total, mask=here)
