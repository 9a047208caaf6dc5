"""Every runner against the reference dynamics, and against itself in other batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from metastable import cuda_noise, noise
from metastable.bundle import Bundle
from metastable.dynamics import ScoreFunction, score_norm
from metastable.dynamics.adp import Ascent, adp
from metastable.dynamics.langevin import langevin
from metastable.engine.runners import Batch, Runner
from metastable.engine.runners.cuda_runner import CudaRunner
from metastable.engine.runners.torch_runner import TorchRunner
from tests.engine.runners.given import DEVICE, LANGEVIN, SIZE, images, keys, off, row_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["torch", "openvino", "onnx", "cuda"])
def runner(request: pytest.FixtureRequest, tiny: Bundle) -> Runner:
    if request.param == "torch":
        return TorchRunner(tiny.networks, tiny.classifier)
    if request.param == "cuda":  # where there is no GPU, its work on the CPU
        return CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, precision="f32")
    pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime"}[request.param])
    graphs = request.getfixturevalue("tiny_graphs")
    if request.param == "openvino":
        from metastable.engine.runners.openvino_runner import OpenVinoRunner

        return OpenVinoRunner(graphs, threads=1)
    from metastable.engine.runners.onnx_runner import OnnxRunner

    return OnnxRunner(graphs, threads=1)


def normal(runner: Runner, key: noise.ChainKey, step: int) -> Tensor:
    """A step's noise of one chain: the CUDA runner draws its own."""
    if isinstance(runner, CudaRunner):
        return cuda_noise.normal(cuda_noise.pack([key], [step]), (3, 32, 32))
    return noise.normal([key], step, (3, 32, 32))


def test_scores_and_logits_are_the_networks_own(runner: Runner, tiny: Bundle) -> None:
    x = images()
    for name, score in tiny.scores.items():
        first = runner.score(name, x)
        kept = first.clone()
        runner.score(name, 1 - x)
        assert torch.equal(first, kept), "an answer must not change at the next call"
        assert off(first, score(x)).median() < 1e-5
    logits = runner.classify(x)
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    assert torch.allclose(logits, tiny.classifier(x), atol=1e-4)


def test_langevin_is_the_reference_with_rows_at_different_steps(runner: Runner, tiny: Bundle) -> None:
    x, steps = images(), [i % 4 for i in range(SIZE)]
    taus = [0.005 + 0.001 * i for i in range(SIZE)]
    got, moved = runner.advance(LANGEVIN, Batch(x, keys(), steps, [row_of(tau) for tau in taus]), 3)
    assert moved.tolist() == [3] * SIZE
    wanted = torch.cat(
        [
            langevin(
                x[i : i + 1],
                tiny.scores["energy"],
                tau=taus[i],
                steps=3,
                noise=lambda t, i=i: normal(runner, keys()[i], steps[i] + t),
            )
            for i in range(SIZE)
        ]
    )
    assert off(got, wanted).quantile(0.9) < 1e-5


@pytest.mark.parametrize("adaptive", [True, False])
def test_adp_is_the_reference_with_a_setting_a_row(runner: Runner, tiny: Bundle, adaptive: bool) -> None:
    x = images()
    score: ScoreFunction = tiny.scores["score"]
    # Between the norms, so that some chains stop at once and others never.
    stop = float(score_norm(score(x)).median()) * 1.0001
    rows = [(0.1 + 0.05 * i, 0.01 if adaptive else 0.1 * i, 0.1 * i + 0.02, stop) for i in range(SIZE)]
    rows = [(a, low if adaptive else high, high, s) for a, low, high, s in rows]
    got, moved = runner.advance(Ascent("score", adaptive=adaptive), Batch(x, keys(), [0] * SIZE, rows), 3)
    results = [
        adp(x[i : i + 1], score, steps=3, lambda_=a, bounds=(low, high), stop=s)
        for i, (a, low, high, s) in enumerate(rows)
    ]
    assert moved.tolist() == [int(r.steps) for r in results]
    assert {0, 3} <= set(moved.tolist())
    # The adaptive step is a quotient of differences, so errors of the last digit grow.
    assert off(got, torch.cat([r.x for r in results])).median() < 1e-4


@hypothesis_settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.permutations(range(SIZE)),
    size=st.integers(1, SIZE),
    first=st.integers(1, 4),
)
def test_a_path_is_the_chains_own(runner: Runner, order: list[int], size: int, first: int) -> None:
    """Not of its neighbours, its place, the batch's size, or the steps that a call takes."""
    x, rows = images(), [row_of(0.01 * (i + 1)) for i in range(SIZE)]
    alone, _ = runner.advance(LANGEVIN, Batch(x, keys(), [0] * SIZE, rows), 5)
    picked = order[:size]
    part = Batch(x[picked], [keys()[i] for i in picked], [0] * size, [rows[i] for i in picked])
    part.x, _ = runner.advance(LANGEVIN, part, first)
    part.next_steps = [first] * size
    together, _ = runner.advance(LANGEVIN, part, 5 - first)
    assert torch.allclose(together, alone[picked], atol=1e-4)


def test_the_callers_state_is_left_alone(runner: Runner) -> None:
    x = images(3)
    before = x.clone()
    runner.advance(LANGEVIN, Batch(x, keys(3), [0] * 3, [row_of(0.1)] * 3), 1)
    runner.advance(Ascent("score"), Batch(x, keys(3), [0] * 3, [(0.5, 0.1, 1.0, 0.0)] * 3), 1)
    assert torch.equal(x, before)
    assert torch.is_grad_enabled()


def test_a_view_with_other_strides_gives_the_same(runner: Runner) -> None:
    x = images(4)
    strided = x.to(memory_format=torch.channels_last)
    assert torch.allclose(runner.score("score", strided), runner.score("score", x), atol=1e-6)
