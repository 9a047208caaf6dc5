"""Algorithm 2 on the device, at toy size: what an update does, when a run stops or returns, resuming."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from metastable import datasets
from metastable.errors import DataError
from metastable.networks.energy import EnergyNetwork
from metastable.training import energy, energy_device
from metastable.training.energy_update import DeviceConfig, Trainer
from metastable.training.energy_watch import PATIENCE, Watch, check, rank
from metastable.training.run import KEPT, Paused, sitting
from tests.training.resident import Resident
from tests.training.test_energy import write_mnist

CPU = torch.device("cpu")
TINY = DeviceConfig(
    dataset="mnist",
    features=4,
    updates=6,
    switch=3,
    batch=4,
    steps=3,
    bank=8,
    report_every=2,
    held=6,
    warm=3,
    check_images=6,
    check_steps=3,
    bundle="model_store/mnist",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (20, 28, 28), generator=rng, dtype=torch.uint8)
    return write_mnist(tmp_path_factory.mktemp("random"), images)


@pytest.fixture(autouse=True)
def at_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # the bundle is named from there


def trainer(data: Path, **changes: Any) -> Trainer:
    config = dataclasses.replace(TINY, **changes)
    images = datasets.load("mnist", data, "train").images
    torch.manual_seed(3)
    network = energy.start_network(config, (1, 28, 28))
    return Trainer(network, images, energy.start_bank(config, images), config, CPU)


@pytest.mark.slow
def test_updates_visit_the_bank_from_end_to_end_and_note_their_figures(data: Path) -> None:
    made = trainer(data, half=False, rejuvenation=0.0)
    optimizer = made.optimizer(adam=True)
    for first in (0, 4, 0):
        before = made.bank.clone()
        made.update(optimizer)
        moved = (made.bank != before).flatten(1).any(1).nonzero().flatten().tolist()
        assert moved == list(range(first, first + 4))
    recent = made.recent()
    assert [len(recent[name]) for name in ("d", "strength", "spread")] == [2, 2, 2]  # the ring's length
    assert all(value > 0 for value in recent["strength"] + recent["spread"])


@pytest.mark.slow
@pytest.mark.parametrize("adam", [True, False])
def test_an_update_reads_nothing_back(data: Path, adam: bool) -> None:
    made = trainer(data)
    optimizer = made.optimizer(adam=adam)
    with Resident():
        for _ in range(3):
            made.update(optimizer)
        made.warm(made.optimizer(adam=True))
    assert all(value > 0 for value in made.recent()["strength"])
    with Resident(), pytest.raises(AssertionError, match="reads a tensor back"):
        made.recent()


def test_an_update_descends_the_difference_that_it_notes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain SGD a weight moves by its rate times the gradient of mean U(data) - mean U(chains)."""
    made = trainer(data, half=False, sgd_lr=0.01)
    before = EnergyNetwork(1, 28, 4)
    before.load_state_dict(made.network.state_dict())
    seen: list[Tensor] = []
    plain = made.network.forward
    monkeypatch.setattr(made.network, "forward", lambda x: (seen.append(x), plain(x))[1])
    made.update(made.optimizer(adam=False))
    on_data, on_chains = before(seen[0]).chunk(2)
    difference = on_data.mean() - on_chains.mean()
    difference.backward()
    assert made.recent()["d"][0] == pytest.approx(float(difference.detach()), rel=1e-4)
    rates = TINY.learning_rates["sgd"]["hidden"] / TINY.sgd_lr * 0.01
    first = before.hidden[1].weight
    moved = made.network.hidden[1].weight - first
    assert torch.allclose(moved, -rates * first.grad, rtol=1e-3, atol=1e-7)  # type: ignore[operator]


def test_the_anchor_adds_score_matching_in_nats_an_image(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of its loss stands the sum of a layer's weights, whose gradient is 1."""
    moved = []
    for anchor in (0.0, 3.0):
        made = trainer(data, anchor=anchor, sgd_lr=1e-3)
        first = made.network.hidden[1].weight
        monkeypatch.setattr(made, "_matching", lambda sigma, first=first: first.sum() * (sigma == 0.03))
        before = first.detach().clone()
        torch.manual_seed(1)
        made.update(made.optimizer(adam=False))
        moved.append(first.detach() - before)
    rate = TINY.learning_rates["sgd"]["hidden"] / TINY.sgd_lr * 1e-3
    assert torch.allclose(moved[1] - moved[0], torch.tensor(-rate * 3.0 * 784 / 2), rtol=1e-2)


@pytest.mark.parametrize("half", [True, False])
def test_chains_follow_the_langevin_equation(data: Path, half: bool) -> None:
    made = trainer(data, half=half, tau=0.5)
    x = torch.rand(3, 1, 28, 28)
    torch.manual_seed(0)
    end, strength = made.walk(x, 1)
    torch.manual_seed(0)
    noise = torch.randn_like(x)
    score = made.network.score(x).detach()
    wanted = x + 0.5 * 0.5**2 * score + 0.5 * noise
    assert (end - wanted).norm() < 0.02 * (wanted - x).norm()
    assert float(strength) == pytest.approx(float(score.flatten(1).norm(dim=1).mean()), rel=0.02)


def test_kernels_that_are_not_written_for_a_network_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="leave out --kernels"):
        trainer(data, kernels=True)


def test_rejuvenated_chains_are_data_again(data: Path) -> None:
    made = trainer(data, rejuvenation=1.0, steps=1, tau=1e-3, data_noise=1e-3, half=False)
    made.bank.fill_(9.0)
    made.update(made.optimizer(adam=False))
    assert made.bank[:4].max() < 2
    assert (made.bank[4:] == 9).all()


@pytest.mark.slow
def test_score_matching_lowers_its_loss(data: Path) -> None:
    made = trainer(data, batch=8, warm_low=0.1, warm_high=0.1)
    clean = made._data(0.0)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))

    def loss() -> float:
        with torch.no_grad():
            return float((made.network.score(clean + 0.1 * noise) * 0.1 + noise).square().mean())

    before, optimizer = loss(), made.optimizer(adam=True)
    for _ in range(20):
        made.warm(optimizer)
    assert loss() < before


@pytest.mark.slow
def test_a_run_writes_what_it_found_and_goes_on_after_a_pause(data: Path, tmp_path: Path) -> None:
    with sitting(0), pytest.raises(Paused):
        energy_device.train(TINY, data, tmp_path, "cpu")  # which ends in score matching
    assert not (tmp_path / "so-far.json").exists()
    energy_device.train(dataclasses.replace(TINY, updates=2), data, tmp_path, "cpu")
    said = json.loads((tmp_path / "so-far.json").read_text())
    assert said["update"] == 2
    assert said["last"]["images"] == 6
    assert (tmp_path / KEPT).exists()
    slower = dataclasses.replace(TINY, updates=8, adam_lr=5e-5)
    result = energy_device.train(slower, data, tmp_path, "cpu")
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    # Adam until update 3, in reports at 2, 3, 5, 7 and 8
    assert [line["lr"] for line in log] == [1e-4, 5e-5, 2e-3, 2e-3, 2e-3]
    assert (result["adam_updates"], result["sgd_updates"]) == (3, 5)
    assert [found["update"] for found in result["checks"]] == [2, 8]
    assert result["returns"] == 0
    network = EnergyNetwork(1, 28, 4)
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with pytest.raises(DataError, match=r"another configuration \(rejuvenation\)"):
        energy_device.train(dataclasses.replace(TINY, rejuvenation=0.5), data, tmp_path, "cpu")


@pytest.mark.slow
def test_the_best_weights_are_kept_not_the_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies, seen = iter([0.3, 0.7, 0.5, 0.4, 0.2]), []

    def judged(made: Trainer, *_: object) -> tuple[Tensor, dict[str, float]]:
        seen.append(made.network.last.weight.detach().clone())
        return torch.rand(6, 1, 28, 28), {"drift": 9.0, "spread": 1.0, "accuracy": next(accuracies)}

    monkeypatch.setattr(energy_device, "check", judged)
    energy_device.train(dataclasses.replace(TINY, check_s=0.0), data, tmp_path, "cpu")
    assert torch.equal(load_file(tmp_path / "weights.safetensors")["last.weight"], seen[1])
    assert not torch.equal(seen[1], seen[-1])


@pytest.mark.slow
def test_a_run_that_goes_astray_returns_and_halves_its_rates(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False, True, False, False, False, False])
    monkeypatch.setattr(Watch, "astray", lambda self, recent: next(looks))
    result = energy_device.train(TINY, data, tmp_path, "cpu")
    assert (result["returns"], result["rate"]) == (1, 0.5)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line.get("rate") for line in log] == [1.0, 0.5, 0.5, 0.5][: len(log)]


@pytest.mark.slow
def test_a_good_run_stops_early(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "done", lambda self, recent, check: True)
    result = energy_device.train(dataclasses.replace(TINY, check_s=0.0), data, tmp_path, "cpu")
    assert result["checks"][-1]["update"] == 2


def test_chains_that_stay_come_before_chains_that_keep_their_class() -> None:
    checks = [
        {"drift": -9.0, "spread": 1.0, "accuracy": 0.9},
        {"drift": 0.5, "spread": 1.0, "accuracy": 0.3},
        {"drift": -0.5, "spread": 1.0, "accuracy": 0.4},
    ]
    assert sorted(checks, key=rank) == checks


def test_a_check_starts_from_images_that_are_never_learned_from(data: Path, tmp_path: Path) -> None:
    every = datasets.load("mnist", data, "train")
    made = energy_device._Training(TINY, data, tmp_path, CPU, lambda check: None)
    assert torch.equal(made.trainer._images, every.images[:14])
    assert torch.equal(made._images, datasets.to_float(every.images[14:]))
    assert torch.equal(made._labels, every.labels[14:])
    found = made.judge()
    assert found["course"] == [{name: found[name] for name in ("steps", "drift", "accuracy")}]
    with pytest.raises(DataError, match="lower --held"):
        energy_device._Training(dataclasses.replace(TINY, held=20), data, tmp_path / "b", CPU, print)


def test_a_check_follows_its_chains_on_the_way(data: Path) -> None:
    made = trainer(data, check_steps=250)
    with torch.no_grad():
        made.network.last.weight.zero_()
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    _, found = check(made, classifier, torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 2]))
    assert [at["steps"] for at in found["course"]] == [100, 200, 250]
    assert found["drift"] == found["course"][-1]["drift"]
    assert found["drift"] == 0
    assert found["denoising"] == pytest.approx(1.0, abs=0.1)  # of a score of zero


def test_a_check_classifies_ends_without_the_noise_of_the_density(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(data)
    monkeypatch.setattr(made.network, "score", lambda x: (0.25 - x) / TINY.data_noise**2)
    seen: list[Tensor] = []

    def classifier(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.eye(10)[: len(x)]

    _, found = check(made, classifier, torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 5]))  # type: ignore[arg-type]
    assert torch.allclose(seen[0], torch.full_like(seen[0], 0.25), atol=1e-4)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_when_a_run_is_astray_and_when_it_is_done() -> None:
    watch = Watch(TINY, 784)
    assert watch.expected == pytest.approx(28 / 0.03)
    steep = watch.expected

    def recent(d: float, n: int = 100, strength: float = steep) -> dict[str, list[float]]:
        return {"d": [d] * n, "spread": [1.0] * n, "strength": [strength] * n}

    for _ in range(PATIENCE // 100 - 1):
        assert not watch.astray(recent(11.0))
    assert watch.astray(recent(11.0))
    for _ in range(9):
        assert not watch.astray(
            recent(11.0, PATIENCE - 1) | {"spread": [1.0] * (PATIENCE - 2) + [2.0]} | {"strength": [steep]}
        )
    assert watch.astray(recent(0.0, strength=4 * steep))
    assert watch.astray(recent(float("nan")))
    assert watch.astray(recent(0.0, strength=float("nan")))

    good = {"drift": 0.5, "spread": 1.0, "accuracy": 0.8}
    swinging = {"d": [1.0, -1.1] * 9, "spread": [1.0] * 18, "strength": [1.0] * 18}
    assert watch.done(swinging, good)
    assert not watch.done(recent(1.0), good)
    for change in ({"drift": -2.0}, {"accuracy": 0.79}):
        assert not watch.done(swinging, good | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank": 9}, "no multiple of a batch"),
        ({"rejuvenation": 2.0}, "rejuvenation must lie"),
        ({"warm_low": 0.5}, "not above warm_high"),
        ({"check_images": 7}, "not above held"),
        ({"activation": "relu"}, "use leaky or silu"),
    ],
)
def test_impossible_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
