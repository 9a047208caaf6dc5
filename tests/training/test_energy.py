"""Algorithm 2 at toy size: what an update touches, the switch of optimizers, exact resuming."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from metastable import datasets
from metastable.dynamics.langevin import langevin_step
from metastable.errors import DataError
from metastable.networks.energy import EnergyNetwork
from metastable.training import energy
from metastable.training.energy import EnergyMlConfig, train_energy_ml
from metastable.training.run import KEPT, Paused, Run, sitting

pytestmark = pytest.mark.slow

TINY = EnergyMlConfig(
    dataset="mnist", features=4, updates=6, switch=3, batch=4, steps=3, bank=10, report_every=2, long_steps=5
)


def write_mnist(root: Path, images: Tensor) -> Path:
    """Write uint8 images [N, 28, 28] as both splits, in the IDX format; returns root."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    n = len(images)
    for stem in ("train", "t10k"):
        head = struct.pack(">4I", 0x803, n, 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + images.numpy().tobytes())
        head = struct.pack(">2I", 0x801, n)
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(head + bytes(i % 10 for i in range(n)))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (20, 28, 28), generator=rng, dtype=torch.uint8)
    return write_mnist(tmp_path_factory.mktemp("random"), images)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    train_energy_ml(TINY, data, out, "cpu")
    return out


def metrics(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return result


def saved(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return state


def test_a_run_writes_weights_metrics_log_and_pictures(whole: Path) -> None:
    result = metrics(whole)
    assert (result["adam_updates"], result["sgd_updates"], result["d_updates"]) == (3, 3, 2)
    assert result["gradient_strength"] > 0
    assert result["long_run"]["steps"] == 5
    assert result["long_run"]["images"] == 20
    assert result["long_run"]["squared_distance"] > 0
    assert result["long_run"]["pixel_min"] < result["long_run"]["pixel_max"]

    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["update"] for line in log] == [2, 4, 6]
    record = saved(whole)["record"]
    assert log[1]["d"] == pytest.approx(record[2:4, 0].mean().item(), rel=1e-4)
    assert all(line["not_finite"] == 0 and line["pixel_min"] < line["pixel_max"] for line in log)

    network = EnergyNetwork(1, 28, 4)
    network.load_state_dict(load_file(whole / "weights.safetensors"))
    assert network(torch.rand(2, 1, 28, 28)).isfinite().all()
    for name in ("health.png", "samples.png"):
        with Image.open(whole / name) as picture:
            assert picture.format == "PNG"
            picture.load()
            assert min(picture.size) > 200


@pytest.mark.parametrize("stop", [1, 3, 4])  # in both phases, and just before the switch
def test_a_resumed_run_equals_an_uninterrupted_one(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    checkpoint, calls = Run.checkpoint, 0

    def interrupted(run: Run, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls == stop:
            checkpoint(run, state, now=True)
        if calls == stop + 1:  # one more update is lost
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_energy_ml(TINY, data, tmp_path, "cpu")
    assert saved(tmp_path)["update"] == stop
    result = train_energy_ml(TINY, data, tmp_path, "cpu")
    assert result == metrics(tmp_path)

    a, b = saved(whole), saved(tmp_path)
    assert torch.equal(a["bank"], b["bank"])
    assert torch.equal(a["record"], b["record"])
    for name, weight in a["network"].items():
        assert torch.equal(weight, b["network"][name]), name
    assert result["long_run"] == metrics(whole)["long_run"]
    assert result["d_mean"] == metrics(whole)["d_mean"]


def test_a_sitting_that_ends_leaves_weights_and_a_verdict(data: Path, tmp_path: Path) -> None:
    with sitting(0), pytest.raises(Paused):
        train_energy_ml(TINY, data, tmp_path, "cpu")
    found = json.loads((tmp_path / "so-far.json").read_text())
    assert found["update"] == 1
    assert found["long_run"]["steps"] == TINY.long_steps
    kept, exact = load_file(tmp_path / KEPT), saved(tmp_path)["network"]
    assert all(torch.equal(value, exact[name].half()) for name, value in kept.items())


@pytest.mark.parametrize("switch", [1, 2, 5])  # Adam's state is dropped, not there yet, or goes on
def test_a_run_may_go_on_for_longer_and_switch_elsewhere(data: Path, tmp_path: Path, switch: int) -> None:
    train_energy_ml(dataclasses.replace(TINY, updates=2, switch=1), data, tmp_path, "cpu")
    result = train_energy_ml(dataclasses.replace(TINY, switch=switch), data, tmp_path, "cpu")
    assert (result["adam_updates"], result["sgd_updates"]) == (switch, 6 - switch)
    assert saved(tmp_path)["update"] == 6
    with pytest.raises(DataError, match=r"another configuration \(tau\)"):
        train_energy_ml(dataclasses.replace(TINY, tau=0.1), data, tmp_path, "cpu")


@pytest.mark.parametrize("switch", [0, 2, 9])
def test_sgd_makes_every_update_from_the_switch_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: int
) -> None:
    made: list[str] = []
    for kind in (torch.optim.Adam, torch.optim.SGD):

        def step(self: Any, closure: None = None, *, plain: Any = kind.step) -> Any:
            made.append(type(self).__name__)
            return plain(self, closure)

        monkeypatch.setattr(kind, "step", step)
    config = dataclasses.replace(TINY, updates=4, switch=switch)
    result = train_energy_ml(config, data, tmp_path, "cpu")
    adam = min(switch, 4)
    assert made == ["Adam"] * adam + ["SGD"] * (4 - adam)
    assert (result["adam_updates"], result["sgd_updates"]) == (adam, 4 - adam)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # said of every use of the flags
@pytest.mark.parametrize("mkldnn", [True, False])  # other kernels round otherwise, as other versions do
@pytest.mark.parametrize("switch", [1, 0])  # an update with Adam, an update with SGD
def test_rates_for_u_train_as_the_published_rates_train_the_folded_network(
    data: Path, tmp_path: Path, switch: int, mkldnn: bool
) -> None:
    """One update of f = c U as the paper's code makes it, against one of ours: weights move alike.

    Gradients that cancel up to rounding are left out: Adam makes a whole step of them in either direction.
    """
    config = dataclasses.replace(TINY, updates=1, switch=switch, adam_lr=1e-3, sgd_lr=0.1)
    c = 0.5 * 0.01**2
    folded = energy.start_network(config, (1, 28, 28))
    with torch.no_grad():
        for p in folded.last.parameters():
            p.mul_(c)
    images = datasets.load("mnist", data, "train").images
    positive, rows, rng = energy._draw_batch(images, 10, config, 0, torch.device("cpu"))
    with torch.backends.mkldnn.flags(enabled=mkldnn):
        x = 2 * energy.start_bank(config, images)[rows].float() - 1  # the paper's units, its update
        for _ in range(config.steps):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(folded((x + 1) / 2).sum(), x)
            noise = torch.randn(len(x), 28, 28, 1, generator=rng).permute(0, 3, 1, 2)
            x = (x - gradient + 0.01 * noise).detach()
        # One batch, as in ours, so that more gradients cancel in both alike.
        u_data, u_samples = folded(torch.cat([positive, (x + 1) / 2])).chunk(2)
        ((u_data.mean() - u_samples.mean()) / c).backward()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(folded.parameters(), lr=0.1 * c)
    if switch:
        optimizer = torch.optim.Adam(folded.parameters(), lr=1e-3)
    optimizer.step()

    train_energy_ml(config, data, tmp_path, "cpu")
    start, learned = energy.start_network(config, (1, 28, 28)).state_dict(), saved(tmp_path)["network"]
    compared = 0
    for name, theirs in folded.named_parameters():
        if name == "last.bias":
            continue  # shifts U by a constant: ours does not learn it
        assert theirs.grad is not None
        certain = theirs.grad.abs() > 1e-5 * theirs.grad.abs().max()
        wanted = (theirs.detach() / (c if name == "last.weight" else 1.0) - start[name])[certain]
        got = (learned[name] - start[name])[certain]
        assert wanted.abs().max() > 0
        assert (got - wanted).abs().max() < 0.01 * wanted.abs().max(), name
        compared += len(wanted)
    assert compared > 0.98 * sum(p.numel() for p in folded.parameters())


def test_rows_of_the_bank_outside_the_batch_are_untouched(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, updates=1)
    images = datasets.load("mnist", data, "train").images
    before = energy.start_bank(config, images)
    _, rows, _ = energy._draw_batch(images, 10, config, 0, torch.device("cpu"))
    train_energy_ml(config, data, tmp_path, "cpu")
    changed = (saved(tmp_path)["bank"] != before).flatten(1).any(dim=1)
    assert sorted(rows.tolist()) == changed.nonzero().flatten().tolist()
    assert len(set(rows.tolist())) == 4


def test_banks(data: Path) -> None:
    images = datasets.load("mnist", data, "train").images
    noise = energy.start_bank(dataclasses.replace(TINY, bank=0), images).float()
    assert noise.shape == (20, 1, 28, 28)
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)
    copies = energy.start_bank(dataclasses.replace(TINY, bank=25, bank_init="data"), images).float()
    assert torch.allclose(copies[20:], images[:5] / 255, atol=5e-4)


def test_chains_follow_the_langevin_equation() -> None:
    torch.manual_seed(3)
    network, x = EnergyNetwork(3, 32, 4), torch.rand(2, 3, 32, 32)
    end, strength = energy.run_chains(network, x, 0.005, 1, torch.Generator().manual_seed(1))
    noise = torch.randn(2, 32, 32, 3, generator=torch.Generator().manual_seed(1)).permute(0, 3, 1, 2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    assert torch.allclose(end, langevin_step(x, -gradient, 0.005, noise), atol=1e-6)
    assert strength == pytest.approx(gradient.flatten(1).norm(dim=1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("switch", [30, 10])  # Adam alone, and SGD after it
def test_data_end_up_with_less_energy_than_noise(tmp_path: Path, switch: int) -> None:
    constant = torch.full((20, 28, 28), 180, dtype=torch.uint8)
    root = write_mnist(tmp_path / "data", constant)
    config = dataclasses.replace(
        TINY, updates=30, switch=switch, batch=8, steps=10, bank=40, adam_lr=1e-3, sgd_lr=1e-4
    )
    train_energy_ml(config, root, tmp_path / "out", "cpu")
    network = energy.start_network(config, (1, 28, 28))
    images = constant[:, None] / 255
    noise = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap_before = network(images).mean() - network(noise).mean()
        network.load_state_dict(saved(tmp_path / "out")["network"])
        gap = network(images).mean() - network(noise).mean()
    assert gap < 0
    assert gap < gap_before


def test_divergence_stops_with_the_last_checkpoint_in_place(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, adam_lr=10.0, switch=6)
    with pytest.raises(RuntimeError, match=r"diverged at update \d+: the energy difference is"):
        train_energy_ml(config, data, tmp_path, "cpu")
    assert not (tmp_path / "weights.safetensors").exists()
    assert not (tmp_path / "checkpoint.pt").exists()  # none was due yet
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert abs(line["d"]) > 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank_init": "zeros"}, "uniform or data"),
        ({"bank": 3}, "cannot fill a batch"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_impossible_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_a_training_set_smaller_than_a_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^20 chains cannot fill a batch of 50"):
        train_energy_ml(dataclasses.replace(TINY, bank=0, batch=50), data, tmp_path, "cpu")
