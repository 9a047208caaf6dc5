from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metastable import cuda_noise, noise

SHAPE = (3, 4, 4)
KEYS = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 2**40))


@given(KEYS, st.integers(0, 2**40))
def test_words_are_numpys_own_philox_stream(key: noise.ChainKey, step: int) -> None:
    seed, chain = key
    philox = np.random.Philox(key=seed, counter=(step << 192) + (chain << 128))
    drawn = cuda_noise.words(cuda_noise.pack([key], [step]), 12)
    assert np.array_equal(drawn[0], philox.random_raw(12))


def test_they_are_what_the_noise_of_the_cpu_is_made_of() -> None:
    """The same key, the same words: NumPy's uniform numbers of this stream are the words' upper bits."""
    seed, chain, step = 1 << 90, 3, 7
    drawn = cuda_noise.words(cuda_noise.pack([(seed, chain)], [step]), 8)[0]
    generator = np.random.Generator(np.random.Philox(key=seed, counter=(step << 192) + (chain << 128)))
    assert np.allclose((drawn >> np.uint64(11)) * 2.0**-53, generator.random(8), atol=0)
    normals = np.random.Generator(np.random.Philox(key=seed, counter=(step << 192) + (chain << 128)))
    first = torch.empty(1, *SHAPE).numpy()
    normals.standard_normal(out=first[0], dtype=np.float32)
    assert np.array_equal(noise.normal([(seed, chain)], step, SHAPE).numpy(), first)


def test_box_muller_agrees_with_float64() -> None:
    words = cuda_noise.words(cuda_noise.pack([(5, 0)], [0]), 4000)
    radius = ((words & np.uint64(0xFFFFFFFF)).astype(np.float64) + 0.5) / 2**32
    angle = 2 * np.pi * (words >> np.uint64(32)).astype(np.float64) / 2**32
    length = np.sqrt(-2 * np.log(radius))
    wanted = np.stack([length * np.cos(angle), length * np.sin(angle)], -1).reshape(1, -1)
    error = np.abs(cuda_noise.box_muller(words) - wanted)
    assert np.quantile(error, 0.999) < 1e-5  # where log(u) is near 0, a rounding of u is all there is
    assert error.max() < 1e-3


def test_the_ends_of_the_words_are_numbers() -> None:
    ends = cuda_noise.box_muller(np.array([0, 2**64 - 1, 2**32 - 1, 2**64 - 2**32], np.uint64))
    assert np.isfinite(ends).all()
    assert 6.7 < np.abs(ends).max() < 6.8


def test_normals_are_normal_and_independent_over_seeds_chains_and_steps() -> None:
    keys = [(seed, chain) for seed in (0, 1, 1 << 64) for chain in range(3) for _ in range(3)]
    rows = cuda_noise.pack(keys, [i % 3 for i in range(len(keys))])
    flat = cuda_noise.normal(rows, (3, 32, 32)).flatten(1).numpy()
    assert stats.kstest(flat.ravel(), "norm").pvalue > 1e-3
    assert abs(flat.mean()) < 5 / np.sqrt(flat.size)
    assert abs(flat.var() - 1) < 5 * np.sqrt(2 / flat.size)
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 5 / np.sqrt(flat.shape[1])


def test_positions_are_numbered_as_channels_last_images_lie_in_memory() -> None:
    rows = cuda_noise.pack([(9, 1)], [2])
    flat = cuda_noise.normal(rows, (3, 2, 3))
    drawn = cuda_noise.box_muller(cuda_noise.words(rows, 12))[0]
    for c in range(3):
        for h in range(2):
            for w in range(3):
                assert flat[0, c, h, w] == drawn[(h * 3 + w) * 3 + c]


@given(st.lists(st.tuples(KEYS, st.integers(0, 2000)), min_size=1, max_size=5), st.integers(0, 20))
def test_a_row_of_an_update_is_its_own(pairs: list[tuple[noise.ChainKey, int]], later: int) -> None:
    keys, steps = [key for key, _ in pairs], [step for _, step in pairs]
    x = torch.rand(len(keys), *SHAPE).contiguous(memory_format=torch.channels_last)
    score, factors = torch.randn(x.shape), torch.rand(2, len(keys))
    together = x.clone()
    cuda_noise.update(together, score, factors, cuda_noise.pack(keys, steps), later)
    for i, key in enumerate(keys):
        alone, at = x[i : i + 1].clone(), cuda_noise.pack([key], [steps[i] + later])
        cuda_noise.update(alone, score[i : i + 1], factors[:, i : i + 1], at, 0)
        assert torch.equal(alone[0], together[i])


def test_impossible_keys_are_refused() -> None:
    for key, step in (((-1, 0), 0), ((1 << 128, 0), 0), ((0, -1), 0), ((0, 0), -1)):
        with pytest.raises(ValueError, match="seed"):
            cuda_noise.pack([key], [step])
    with pytest.raises(ValueError, match="zip"):
        cuda_noise.pack([(0, 0)], [0, 1])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
def test_the_kernels_bits_are_the_references(root: Path) -> None:
    """In Triton's interpreter, in a process of its own: it is chosen when Triton is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.correct", "--device", "cpu", "--tiny", "--only", "kernel"],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "words of the kernel" in done.stdout


def test_a_stream_packs_its_keys_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what is drawn is the reference of each step, and nothing is packed again for it."""
    keys, packed = [(5, 0), (1 << 100, 3)], []
    pack = cuda_noise.pack

    def counted(keys: list[noise.ChainKey], steps: list[int]) -> torch.Tensor:
        packed.append(len(keys))
        return pack(keys, steps)

    class Gpu:
        type = "cuda"

    monkeypatch.setattr(cuda_noise, "pack", counted)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    drawn = noise.stream(keys, SHAPE, Gpu())  # type: ignore[arg-type]
    for step in (0, 7):
        wanted = cuda_noise.normal(pack(keys, [step, step]), SHAPE)
        assert torch.allclose(drawn(step), wanted, atol=1e-6)
    assert packed == [2]


def test_a_stream_on_the_cpu_is_the_noise_of_each_step() -> None:
    drawn = noise.stream([(5, 0)], SHAPE, torch.device("cpu"))
    assert torch.equal(drawn(3), noise.normal([(5, 0)], 3, SHAPE))
