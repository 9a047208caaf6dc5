"""The CUDA runner against the reference dynamics: its work on the CPU, and graphs where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metastable import cuda_noise
from metastable.bundle import Bundle
from metastable.dynamics.langevin import langevin
from metastable.engine.runners import Batch, Kind, choose
from metastable.engine.runners.cuda_graphs import LARGEST, bucket
from metastable.engine.runners.cuda_runner import SEGMENT, CudaRunner
from metastable.errors import MissingPackage
from tests.engine.runners.test_parity import DEVICE, LANGEVIN, SIZE, images, keys, off


@pytest.fixture(scope="module")
def runner(tiny: Bundle) -> CudaRunner:
    return CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, precision="f32")


@given(st.integers(1, LARGEST))
def test_a_bucket_holds_its_batch_and_wastes_an_eighth_at_most(size: int) -> None:
    assert size <= bucket(size) <= max(size * 9 / 8, size)
    assert bucket(bucket(size)) == bucket(size)


def test_there_are_few_buckets() -> None:
    assert len({bucket(size) for size in range(1, LARGEST + 1)}) == 88
    assert [bucket(size) for size in (10, 100, 150, 1500, 6000)] == [10, 104, 160, 1536, 6144]


def test_langevin_is_the_reference_with_rows_at_different_steps(runner: CudaRunner, tiny: Bundle) -> None:
    """Over a whole segment and some steps more, so that graphs of both lengths take part."""
    x, first, count = images(), [i % 4 for i in range(SIZE)], SEGMENT + 2
    taus = [0.005 + 0.001 * i for i in range(SIZE)]
    got, moved = runner.advance(LANGEVIN, Batch(x, keys(), first, [(tau,) for tau in taus]), count)
    assert moved.tolist() == [count] * SIZE
    wanted = torch.cat(
        [
            langevin(
                x[i : i + 1],
                tiny.scores["energy"],
                tau=taus[i],
                steps=count,
                noise=lambda t, i=i: cuda_noise.normal(
                    cuda_noise.pack([keys()[i]], [first[i] + t]), (3, 32, 32)
                ),
            )
            for i in range(SIZE)
        ]
    )
    assert off(got, wanted).median() < 1e-4


def test_admissions_record_nothing_new_and_secrets_do_not_stay(tiny: Bundle) -> None:
    runner = CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, precision="f32")

    def admit(seed: int, size: int) -> None:
        batch = Batch(images(size), [(seed, c) for c in range(size)], [0] * size, [(0.01,)] * size)
        runner.advance(LANGEVIN, batch, 2)

    for size in (1, 2, 3):
        admit(0, size)
    before = runner.recordings
    assert before == 3
    for seed in range(20):
        admit(seed, 1 + seed % 3)
    assert runner.recordings == before
    assert not runner.lane(LANGEVIN, images(3))._rows.any()


def test_bf16_is_near_and_its_states_are_float32(tiny: Bundle) -> None:
    runner = CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, precision="bf16")
    x = images()
    assert 1e-5 < off(runner.score("score", x), tiny.scores["score"](x)).median() < 0.1
    got, _ = runner.advance(LANGEVIN, Batch(x, keys(), [0] * SIZE, [(0.01,)] * SIZE), 1)
    assert got.dtype == torch.float32


def test_drift_and_noise_are_their_equations(runner: CudaRunner, tiny: Bundle) -> None:
    x, z = images(), cuda_noise.normal(cuda_noise.pack(keys(), [0] * SIZE), (3, 32, 32))
    got, _ = runner.advance(Kind("drift", "score"), Batch(x, keys(), [0] * SIZE, [(0.3, 0.2)] * SIZE), 1)
    assert off(got, x + 0.3 * tiny.scores["score"](x) + 0.2 * z).median() < 1e-5
    got, _ = runner.advance(Kind("noise", ""), Batch(x, keys(), [0] * SIZE, [(0.2,)] * SIZE), 1)
    assert torch.allclose(got, (x + 0.2 * z).clamp(0, 1), atol=1e-5)
    with pytest.raises(RuntimeError, match="choose the runner torch"):
        runner.advance(Kind("reconstruction", "energy"), Batch(x, keys(), [0] * SIZE, [(1, 1, 1)] * SIZE), 1)


def test_what_is_not_there_is_named(runner: CudaRunner, tiny: Bundle) -> None:
    with pytest.raises(RuntimeError, match=r"cuda-f32 has no network 'other'"):
        runner.score("other", images(1))
    with pytest.raises(ValueError, match="precision must be one of"):
        CudaRunner(tiny.networks, tiny.classifier, device="cpu", precision="int8")  # type: ignore[arg-type]


def test_auto_takes_it_where_there_is_a_gpu_and_else_says_what_is_missing(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = choose.Parts(tiny.networks, tiny.classifier, {}, tiny.shape)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingPackage, match="needs a GPU"):
        choose.make("cuda", parts)
    assert choose.make("auto", parts).name == "torch"

    def here(parts: choose.Parts, files: object, precision: str) -> CudaRunner:
        return CudaRunner(parts.networks, parts.classifier, device="cpu")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(choose.MAKERS, "cuda", choose.Maker(here))
    assert choose.make("auto", parts).name == "cuda-tf32"
