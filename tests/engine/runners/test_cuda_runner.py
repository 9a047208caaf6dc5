"""The CUDA runner against the reference dynamics: its work on the CPU, and graphs where there is a GPU."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metastable import cuda_noise
from metastable.bundle import Bundle
from metastable.dynamics.drift import Drift
from metastable.dynamics.gaussian import Noisy
from metastable.dynamics.langevin import langevin
from metastable.dynamics.reconstruction import Rolls
from metastable.engine.runners import Batch, choose, cuda_runner
from metastable.engine.runners.cuda_graphs import LARGEST, SIZES, fitting
from metastable.engine.runners.cuda_lanes import SEGMENT
from metastable.engine.runners.cuda_networks import compiled
from metastable.engine.runners.cuda_runner import CudaRunner
from metastable.errors import MissingPackage
from metastable.networks.onnx_classifier import OnnxClassifier
from tests.engine.runners.given import DEVICE, LANGEVIN, SIZE, images, keys, off, row_of


@pytest.fixture(scope="module")
def runner(tiny: Bundle) -> CudaRunner:
    return CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, precision="f32")


@given(st.integers(1, LARGEST))
def test_a_graph_holds_its_batch_and_wastes_a_third_at_most(size: int) -> None:
    recorded = fitting(size, SIZES)
    assert size <= recorded <= max(size * 3 / 2, 2 * size if size < 16 else 0)
    assert fitting(recorded, SIZES) == recorded


def test_a_size_that_is_asked_for_has_no_empty_rows(tiny: Bundle) -> None:
    made = CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, sizes=(7, 100))
    assert [fitting(size, (7, 100)) for size in (1, 7, 8, 100, 101)] == [7, 7, 100, 100, 125]
    made.score("energy", images(7))
    assert list(made._passes) == [("energy", 7)]


@pytest.mark.slow
def test_langevin_is_the_reference_with_rows_at_different_steps(runner: CudaRunner, tiny: Bundle) -> None:
    """Over a whole segment and some steps more, so that graphs of both lengths take part."""
    x, first, count = images(), [i % 4 for i in range(SIZE)], SEGMENT + 2
    taus = [0.005 + 0.001 * i for i in range(SIZE)]
    got, moved = runner.advance(LANGEVIN, Batch(x, keys(), first, [row_of(tau) for tau in taus]), count)
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
        batch = Batch(images(size), [(seed, c) for c in range(size)], [0] * size, [row_of(0.01)] * size)
        runner.advance(LANGEVIN, batch, 2)

    for size in (1, 2, 4):
        admit(0, size)
    before = runner.recordings
    assert before == 6  # a step and a segment for each size
    for seed in range(20):
        admit(seed, 1 + seed % 3)
    assert runner.recordings == before
    assert not runner.lane(LANGEVIN, images(3))._rows.any()


def test_bf16_is_near_and_its_states_are_float32(tiny: Bundle) -> None:
    runner = CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, precision="bf16")
    x = images()
    assert 1e-5 < off(runner.score("score", x), tiny.scores["score"](x)).median() < 0.1
    got, _ = runner.advance(LANGEVIN, Batch(x, keys(), [0] * SIZE, [row_of(0.01)] * SIZE), 1)
    assert got.dtype == torch.float32


def test_float16_moves_as_float32_does(tiny: Bundle) -> None:
    """The score comes scaled, and the factors of the step undo it."""
    made = CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, precision="f16")
    exact = CudaRunner(tiny.networks, tiny.classifier, device=DEVICE, precision="f32")
    x = images()
    assert made._known("energy").scale == 2.0**-8
    assert off(made.score("energy", x), tiny.scores["energy"](x)).median() < 0.02
    for kind, row in ((LANGEVIN, row_of(0.5)), (Drift("energy"), (0.4, 0.01))):
        batch = Batch(x, keys(), [0] * SIZE, [row] * SIZE)
        got, wanted = made.advance(kind, batch, 1)[0], exact.advance(kind, batch, 1)[0]
        assert off(got - x, wanted - x).median() < 0.02


def test_drift_and_noise_are_their_equations(runner: CudaRunner, tiny: Bundle) -> None:
    x, z = images(), cuda_noise.normal(cuda_noise.pack(keys(), [0] * SIZE), (3, 32, 32))
    got, _ = runner.advance(Drift("score"), Batch(x, keys(), [0] * SIZE, [(0.3, 0.2)] * SIZE), 1)
    assert off(got, x + 0.3 * tiny.scores["score"](x) + 0.2 * z).median() < 1e-5
    got, _ = runner.advance(Noisy(), Batch(x, keys(), [0] * SIZE, [(0.2,)] * SIZE), 1)
    assert torch.allclose(got, (x + 0.2 * z).clamp(0, 1), atol=1e-5)
    with pytest.raises(RuntimeError, match="choose the runner torch"):
        runner.advance(Rolls("energy", 1, 1), Batch(x, keys(), [0] * SIZE, [(1, 1, 1)] * SIZE), 1)


def test_what_is_not_there_is_named(runner: CudaRunner, tiny: Bundle) -> None:
    with pytest.raises(RuntimeError, match=r"cuda-f32 has no network 'other'"):
        runner.score("other", images(1))
    with pytest.raises(ValueError, match="precision must be one of"):
        CudaRunner(tiny.networks, tiny.classifier, device="cpu", precision="int8")  # type: ignore[arg-type]


def test_auto_takes_it_where_there_is_a_gpu_and_else_says_what_is_missing(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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

    def broken(parts: choose.Parts, files: object, precision: str) -> CudaRunner:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setitem(choose.MAKERS, "cuda", choose.Maker(broken))
    with caplog.at_level("WARNING"):
        assert choose.make("auto", parts).name == "torch"
    assert "runner cuda cannot run this bundle: no kernel" in caplog.text


@pytest.mark.parametrize(("name", "made"), [("cuda", "tf32"), ("cuda-bf16", "bf16"), ("cuda-f16", "f16")])
def test_it_is_served_in_three_precisions(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, made: str
) -> None:
    monkeypatch.setattr(cuda_runner, "CudaRunner", functools.partial(CudaRunner, device="cpu"))
    maker = choose.MAKERS[name]
    parts = choose.Parts(tiny.networks, tiny.classifier, {}, tiny.shape)
    runner = maker.make(parts, {}, maker.precision)
    assert runner.name == f"cuda-{made}"
    assert not runner.abilities.exact
    x = images()
    wanted = tiny.scores["energy"](x)
    assert (runner.score("energy", x) - wanted).norm() < 0.1 * wanted.norm()
    assert runner.classify(x).shape == (SIZE, 10)
    assert maker.gpu
    assert maker.package == "triton"


@pytest.mark.parametrize("seen", ["exact", "tf32", "bf16"])
def test_only_float32_is_exact(tiny: Bundle, seen: str) -> None:
    precision = "f32" if seen == "exact" else seen
    made = CudaRunner(tiny.networks, tiny.classifier, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert made.abilities.exact is (seen == "exact")


def test_packed_keys_and_held_parameters_are_what_they_are_made_of(runner: CudaRunner) -> None:
    x, steps = images(), [i % 4 for i in range(SIZE)]
    rows = [row_of(0.01)] * SIZE
    wanted, _ = runner.advance(LANGEVIN, Batch(x, keys(), steps, rows), 2)
    packed = cuda_noise.pack(keys(), steps)
    nobody = [(0, 0)] * SIZE  # what was packed is not packed again
    got, _ = runner.advance(LANGEVIN, Batch(x, nobody, [0] * SIZE, [], packed, torch.tensor(rows).T), 2)
    assert torch.equal(got, wanted)


def test_a_classifier_that_no_graph_can_hold_runs_outside(tiny: Bundle) -> None:
    class Host(torch.nn.Module):
        """As OnnxClassifier: images go to the CPU as they are, whatever the runner's precision."""

        capturable = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.device.type == "cpu"
            assert x.dtype == torch.float32
            return x.flatten(1)[:, :10]

    made = CudaRunner(tiny.networks, Host(), device=DEVICE, precision="bf16")
    before = made.recordings
    assert torch.equal(made.classify(images()), images().flatten(1)[:, :10])
    assert made.recordings == before
    assert OnnxClassifier.capturable is False


@pytest.mark.slow
def test_compiling_leaves_only_the_batch_open(tiny: Bundle) -> None:
    seen: list[list[bool]] = []

    def backend(module: torch.fx.GraphModule, examples: list[object]) -> object:
        [x] = [n.meta["example_value"] for n in module.graph.nodes if n.op == "placeholder" and "x" in n.name]
        seen.append([isinstance(size, torch.SymInt) for size in x.shape])
        return module.forward

    call = compiled(lambda x: torch.nn.functional.avg_pool2d(x, 2) * 2, backend)  # type: ignore[arg-type]
    for size in (5, 3, 1, 9, 1):
        x = images(size)
        assert torch.allclose(call(x), torch.nn.functional.avg_pool2d(x, 2) * 2)
    assert seen == [[True, False, False, False], [False] * 4]
