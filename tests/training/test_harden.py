import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from metastable import datasets
from metastable.errors import BundleError, DataError
from metastable.training import harden, harden_session, harden_step
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_guard import PATIENCE, Guard
from metastable.training.harden_parts import new_classifier
from metastable.training.run import Paused, sitting
from tests.training import harden_toys
from tests.training.harden_toys import config


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", harden_toys.pictures)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return harden_toys.write_bundle(tmp_path / "bundle")


def start_weights(settings: HardenConfig, tmp_path: Path) -> dict[str, torch.Tensor]:
    session = harden_session.begin(settings, tmp_path, tmp_path / "untouched", "cpu")
    return {k: v.clone() for k, v in session.update.pipeline.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"mode": "stability"}, {"purifier"}),
        ({"mode": "purifier"}, {"purifier"}),
        ({"mode": "purifier", "unroll": 2, "attack_steps": 1}, {"purifier"}),
        ({"mode": "both", "loss": "trades", "optimizer": "sgd"}, {"purifier", "classifier"}),
        ({"mode": "both", "consistency": 2.0, "denoise": 0.1, "ramp": 0.5}, {"purifier", "classifier"}),
        ({"mode": "classifier", "sigma": 0.0, "cutout": 4}, {"classifier"}),
        ({"mode": "classifier", "frozen_purifier": True}, {"classifier"}),
    ],
)
def test_a_mode_moves_its_parts_and_no_other(
    tmp_path: Path, folder: Path, changes: dict[str, Any], moves: set[str]
) -> None:
    settings = config(folder, **changes)
    before = start_weights(settings, tmp_path)
    result = harden.train(settings, tmp_path, tmp_path / "run", "cpu")
    assert result["updates"] == 6
    # Both the weights that learn and those that are averaged and shipped.
    last = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["network"]
    shipped = load_file(tmp_path / "run" / "weights.safetensors")
    for after in (last, shipped):
        assert set(after) == set(before)
        for name, value in before.items():
            if name.partition(".")[0] not in moves:
                assert torch.equal(after[name], value), name
    for part in moves:
        assert any(
            not torch.equal(last[k], v) for k, v in before.items() if k.startswith(part) and v.ndim > 1
        )
    for part in ("purifier", "classifier"):
        there = (tmp_path / "run" / part / "weights.safetensors").exists()
        assert there == (part == "classifier" or settings.purifies)
        assert there == (tmp_path / "run" / f"{part}.fp16.safetensors").exists()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, folder: Path) -> None:
    settings = config(folder, updates=7, pad=2, flip=True)
    harden.train(settings, tmp_path, tmp_path / "whole", "cpu")
    pauses = 0
    while True:
        try:
            with sitting(0):
                harden.train(settings, tmp_path, tmp_path / "parts", "cpu")
            break
        except Paused:
            pauses += 1
            assert (tmp_path / "parts" / "purifier.fp16.safetensors").exists()
    assert pauses >= 6
    whole, parts = (
        torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts")
    )
    assert whole["step"] == parts["step"] == 7
    for key in ("network", "average", "extra"):
        for name, value in whole[key].items():
            assert torch.equal(value.nan_to_num(), parts[key][name].nan_to_num()), name
    for one, other in zip(
        whole["optimizer"]["state"].values(), parts["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
def test_it_learns_a_toy_problem(tmp_path: Path, folder: Path) -> None:
    settings = config(
        folder,
        classifier="compact-4-6-8",
        updates=60,
        check_every=30,
        check_images=16,
        eps=0.05,
        lr=0.01,
        log_every=10,
        pad=0,
        copies=str(tmp_path / "copies"),
    )
    result = harden.train(settings, tmp_path, tmp_path / "run", "cpu")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.75 * losses[0]
    assert result["natural"] == 1.0
    assert result["robust_pgd20"] >= 0.9
    assert result["robust_before"] < result["robust_kept"]
    names = {path.name for path in (tmp_path / "copies").iterdir()}
    assert names == {
        *("purifier.fp16.safetensors", "classifier.fp16.safetensors", "parts.json"),
        *("log.jsonl", "health.png", "metrics.json"),
    }


@pytest.mark.slow
def test_a_time_to_fit_settles_the_number_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harden, "RESERVE", (0.0, 0.0))
    monkeypatch.setattr(harden_session.Update, "seconds", lambda *_: 0.5)
    settings = config(folder, fit_minutes=0.1, check_every=1000)
    with sitting(0), pytest.raises(Paused):
        harden.train(settings, tmp_path, tmp_path / "run", "cpu")
    planned = int(torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["extra"]["plan"])
    assert 1 <= planned <= 12
    monkeypatch.setattr(harden_session.Update, "seconds", lambda *_: 0.001)
    assert harden.train(settings, tmp_path, tmp_path / "run", "cpu")["updates"] == planned


@pytest.mark.slow
def test_the_guard_restores_the_last_good_weights(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robust = iter([0.2, 0.5, 0.1, 0.55, 0.6, 0.6])
    seen = []

    def check(session: harden_session.Session) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in session.learner.average.shadow.items()})
        return {"natural": 0.9, "robust": next(robust)}

    monkeypatch.setattr(harden_session.Session, "check", check)
    restored = []
    put_back = harden_session.Session.restore

    def restore(session: harden_session.Session) -> None:
        put_back(session)
        restored.append({k: v.clone() for k, v in session.update.pipeline.state_dict().items()})
        assert all(not v.any() for v in harden_step.tensors_of(session.update.optimizer))

    monkeypatch.setattr(harden_session.Session, "restore", restore)
    result = harden.train(config(folder, updates=15), tmp_path, tmp_path / "run", "cpu")
    assert result["restorations"] == 1
    assert not result["aborted"]
    assert result["attack_steps_at_the_end"] == 3
    assert all(torch.equal(v, seen[1][k]) for k, v in restored[0].items())
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert '"restored": 1.0, "rate_factor": 0.5, "steps": 3.0' in log
    best = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(v, seen[-1][k]) for k, v in best.items())


def test_the_guard_gives_up_and_keeps_the_best() -> None:
    guard = Guard(steps=10)
    assert guard.judge(0.3, finite=True) == "best"
    assert guard.judge(0.2, finite=True) == "good"
    assert guard.judge(0.45, finite=True) == "best"
    assert math.isclose(guard.best, 0.325)
    for _ in range(PATIENCE):
        assert guard.judge(0.2, finite=True) == "restore"
    assert guard.judge(0.44, finite=False) == "abort"
    assert (guard.steps, guard.rate, guard.last) == (10, 1 / 16, 0.45)
    assert Guard.of(guard.state()) == guard


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [harden.schedule(step, 0.2, 10) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[10] == 0
    assert all(a > b for a, b in pairwise(rates[2:]))


def test_held_out_images_are_never_drawn(tmp_path: Path) -> None:
    learned, held = harden_session.split(config(), tmp_path)
    whole = harden_toys.pictures("cifar10", tmp_path, "train")
    assert torch.equal(torch.cat([learned.images, held.images]), whole.images)
    assert len(held) == 16
    few, _ = harden_session.split(config(images=20), tmp_path)
    assert len(few) == 20
    with pytest.raises(DataError, match="too few"):
        harden_session.split(config(held_out=80), tmp_path)


def test_what_cannot_be_is_named(tmp_path: Path, folder: Path) -> None:
    for changes, field in (
        ({"mode": "x"}, "mode"),
        ({"sigma": 2.0}, "sigma"),
        ({"unroll": 5}, "unroll"),
        ({"mode": "stability", "loss": "trades"}, "trades"),
        ({"frozen_purifier": True}, "frozen_purifier"),
        ({"mode": "classifier", "unroll": 2}, "unroll"),
        ({"lr": -0.5}, "lr"),
        ({"batch": 0}, "batch"),
    ):
        with pytest.raises(ValueError, match=field):
            config(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no classifier"):
        new_classifier("resnet")
    with pytest.raises(BundleError, match="no part 'energy'"):
        harden.train(config(folder, start="energy"), tmp_path, tmp_path / "run", "cpu")
    with pytest.raises(DataError, match="too few"):
        harden.train(config(folder, batch=65), tmp_path, tmp_path / "other", "cpu")


@pytest.mark.parametrize("name", ["compact-4-4-4", "wrn-10-1", "wrn-10-1-silu", "cnn-2-2-4"])
def test_new_classifiers_say_how_they_are_built_again(name: str) -> None:
    from metastable.bundle import ARCHITECTURES

    made = new_classifier(name, 7)
    again = ARCHITECTURES[made.architecture](**made.arguments)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in made.network.state_dict().items()
    }
