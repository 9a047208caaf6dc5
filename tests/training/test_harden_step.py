from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metastable import datasets
from metastable.training import harden_session, harden_step
from tests.training import harden_toys
from tests.training.harden_toys import config
from tests.training.resident import Resident

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", harden_toys.pictures)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return harden_toys.write_bundle(tmp_path / "bundle")


def test_one_update_lowers_the_loss_of_its_batch(tmp_path: Path, folder: Path) -> None:
    settings = config(folder, optimizer="sgd", attack_steps=1, ema=0.0)
    session = harden_session.begin(settings, tmp_path, tmp_path / "run", "cpu")
    update = session.update
    values = []
    for _ in range(4):  # the same batch, attack start and noise again and again
        update.load(session.batches, 0, rate=0.05, eps=4 / 255)
        update()
        values.append(float(update.ring[(int(update.cursor) - 1) % len(update.ring), 0]))
    assert values[-1] < values[0]
    # With no memory the average is the network.
    for name, value in update.pipeline.state_dict().items():
        assert torch.allclose(session.learner.average.shadow[name].float(), value.float(), atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"attack_steps": 2},
        {"optimizer": "sgd", "loss": "trades", "attack_steps": 1},
        {"mode": "stability", "unroll": 2},
    ],
)
def test_an_update_reads_nothing_back(tmp_path: Path, folder: Path, changes: dict[str, Any]) -> None:
    session = harden_session.begin(config(folder, **changes), tmp_path, tmp_path / "run", "cpu")
    update = session.update
    for step in range(2):
        update.load(session.batches, step, rate=1e-3, eps=0.03)
        with Resident():
            update.work()
    assert (update.ring[:, 2] > 0).all()


def test_measuring_speed_changes_nothing(tmp_path: Path, folder: Path) -> None:
    session = harden_session.begin(config(folder), tmp_path, tmp_path / "run", "cpu")
    update = session.update
    update.load(session.batches, 0, rate=1e-3, eps=0.03)
    update()
    before = {k: v.clone() for k, v in update.pipeline.state_dict().items()}
    moments = [v.clone() for v in harden_step.tensors_of(update.optimizer)]
    assert moments
    assert update.seconds(session.batches, 2) > 0
    assert all(torch.equal(v, before[k]) for k, v in update.pipeline.state_dict().items())
    for value, old in zip(harden_step.tensors_of(update.optimizer), moments, strict=True):
        assert torch.equal(value, old)


class Recorded:
    """In place of a CUDA graph: remembers what was recorded, and does it again."""

    def __init__(self) -> None:
        self.work = lambda: None

    def replay(self) -> None:
        self.work()


def test_a_recorded_update_is_the_eager_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code around a graph, with PyTorch's calls replaced: what is replayed, and what state is left."""
    sessions = [
        harden_session.begin(config(folder), tmp_path, tmp_path / run, "cpu") for run in ("one", "other")
    ]
    eager, graphed = (session.update for session in sessions)

    @contextmanager
    def graph(made: Recorded) -> Iterator[None]:
        made.work = graphed.work
        yield

    quiet = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: quiet)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: quiet)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    with harden_step.Kept(graphed):
        graphed._try("the CUDA graph", graphed._recorded, sessions[1].batches)
    assert graphed.graphed
    assert not eager.graphed
    for step in range(3):
        for session in sessions:
            session.update.load(session.batches, step, rate=0.01, eps=0.03)
            session.update()
    assert torch.equal(eager.ring, graphed.ring)
    for name, value in eager.pipeline.state_dict().items():
        assert torch.equal(value, graphed.pipeline.state_dict()[name])
    for name, value in eager.average.shadow.items():
        assert torch.equal(value, graphed.average.shadow[name])


def test_what_fails_to_record_is_left_out(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = harden_session.begin(config(folder), tmp_path, tmp_path / "run", "cpu")

    def stream() -> None:
        raise RuntimeError("no such thing\nhere")

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    session.update._try("the CUDA graph", session.update._recorded, session.batches)
    assert not session.update.graphed
    assert (
        "the CUDA graph failed, and updates go on without it: RuntimeError: no such"
        in capsys.readouterr().err
    )


def test_a_compiled_pipeline_computes_the_same(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic: compiler(f, dynamic=dynamic, backend="aot_eager")
    )
    values = []
    for wanted in (False, True):
        settings = config(folder, consistency=1.0)
        session = harden_session.begin(settings, tmp_path, tmp_path / str(wanted), "cpu")
        session.update.pipeline.compiled(wanted)
        for step in range(2):
            session.update.load(session.batches, step, rate=0.01, eps=0.03)
            session.update()
        values.append(torch.cat([p.detach().flatten() for p in session.update.pipeline.learners]))
    assert torch.allclose(*values, atol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_optimizers_are_those_of_pytorch_with_decay_of_weights_alone(
    tmp_path: Path, folder: Path, kind: str
) -> None:
    settings = config(folder, optimizer=kind, weight_decay=0.1, purifier_lr=0.5, clip=1e9)
    session = harden_session.begin(settings, tmp_path, tmp_path / "run", "cpu")
    made = session.update.pipeline
    groups = session.update.optimizer.param_groups
    assert {(g["factor"], g["weight_decay"], p.ndim > 1) for g in groups for p in g["params"]} == {
        *((0.5, 0.1, True), (0.5, 0.0, False), (1.0, 0.1, True), (1.0, 0.0, False))
    }
    before = {name: p.detach().clone().requires_grad_() for name, p in made.named_parameters()}
    session.update.load(session.batches, 0, rate=0.01, eps=0.03)
    session.update()
    for name, p in made.named_parameters():
        decay = 0.1 if p.ndim > 1 else 0.0
        rate = 0.005 if name.startswith("purifier") else 0.01
        twin = before[name]
        if kind == "sgd":
            plain: torch.optim.Optimizer = torch.optim.SGD(
                [twin], lr=rate, momentum=0.9, nesterov=True, weight_decay=decay
            )
        else:
            plain = torch.optim.AdamW([twin], lr=rate, betas=(0.9, 0.99), weight_decay=decay)
        assert p.grad is not None
        twin.grad = p.grad.clone()
        plain.step()
        assert torch.allclose(twin, p, atol=1e-6), name
