import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metastable import noise

SHAPE = (3, 4, 4)
KEYS = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 1000))


@given(st.lists(KEYS, min_size=1, max_size=6), st.integers(0, 2000))
def test_a_row_depends_on_its_own_key_and_step_only(keys: list[noise.ChainKey], step: int) -> None:
    together = noise.normal(keys, step, SHAPE)
    for row, key in zip(together, keys, strict=True):
        assert torch.equal(row, noise.normal([key], step, SHAPE)[0])
    assert torch.equal(together.flip(0), noise.normal(keys[::-1], step, SHAPE))


def test_different_seeds_chains_and_steps_are_independent_normals() -> None:
    rows = [
        noise.normal([(seed, chain)], step, (3, 32, 32))
        for seed in (0, 1, 1 << 64)
        for chain in range(3)
        for step in range(3)
    ]
    flat = torch.cat(rows).flatten(1).numpy()
    assert stats.kstest(flat.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlation).max() < 5 / np.sqrt(flat.shape[1])


@given(st.lists(st.tuples(KEYS, st.integers(0, 2000)), min_size=1, max_size=6))
def test_rows_may_be_at_different_steps(rows: list[tuple[noise.ChainKey, int]]) -> None:
    keys, steps = [key for key, _ in rows], [step for _, step in rows]
    together = noise.normal(keys, steps, SHAPE)
    for row, key, step in zip(together, keys, steps, strict=True):
        assert torch.equal(row, noise.normal([key], step, SHAPE)[0])
    with pytest.raises(ValueError, match="zip"):
        noise.normal(keys, [*steps, 0], SHAPE)


def test_impossible_keys_are_refused() -> None:
    for key, step in (((-1, 0), 0), ((1 << 128, 0), 0), ((0, -1), 0), ((0, 0), -1)):
        with pytest.raises(ValueError, match="seed"):
            noise.normal([key], step, SHAPE)


def test_secret_seeds_are_fresh_and_use_all_bits() -> None:
    seeds = [noise.secret_seed() for _ in range(200)]
    assert len(set(seeds)) == 200
    assert all(0 <= s < 2**128 for s in seeds)
    ones = np.mean([bin(s).count("1") for s in seeds])
    assert 58 < ones < 70
