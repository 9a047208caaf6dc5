"""Hardening the purifier before somebody's ONNX classifier, from a brought bundle to a served one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from export import __main__ as export_command
from export import hardened
from metastable import bundle, datasets
from metastable.engine.local import engine_on
from metastable.errors import BundleError, DataError, NoGradient
from metastable.training import __main__ as command
from metastable.training import harden, harden_parts, harden_session
from metastable.training.harden_brought import Brought
from metastable.training.run import Paused, sitting
from tests.networks.brought import Separable, Vit, exported, seen, write_bundle
from tests.training import harden_toys
from tests.training.harden_toys import config

pytestmark = pytest.mark.slow

pytest.importorskip("onnx2fx")
SETTINGS = """
default: fast
caps: {chains: 4, steps: 1}
settings:
  none: {dynamics: none}
  fast: {dynamics: adp, network: purifier, chains: 4, steps: 1, sigma: 0.1, step_fraction: 1.0,
         step_bounds: [1.0, 1.0], stop: 0.0}
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", harden_toys.pictures)


@pytest.fixture(scope="module")
def graph() -> bytes:
    torch.manual_seed(0)
    return exported(seen(Separable(10), 16), 16)


@pytest.fixture
def folder(tmp_path: Path, graph: bytes) -> Path:
    base = harden_toys.write_bundle(tmp_path / "base")
    return write_bundle(tmp_path / "mine", base, graph, size=16, to=16)


@pytest.mark.parametrize("changes", [{"mode": "stability"}, {"mode": "purifier", "bf16": True}])
def test_only_the_purifier_moves_and_the_graph_stays_to_the_byte(
    folder: Path, tmp_path: Path, graph: bytes, changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, copies, made = tmp_path / "run", tmp_path / "copies", tmp_path / "made"
    asked = config(folder, copies=str(copies), lr=0.02, ema=0.5, **changes)
    result = harden.train(asked, tmp_path, run, "cpu")
    assert result["updates"] == 6
    for place in (run, copies):
        assert (place / "classifier.onnx").read_bytes() == graph
        assert not (place / "classifier.fp16.safetensors").exists()
    before = bundle.load(folder)
    last = torch.load(run / "checkpoint.pt", weights_only=True)["network"]
    start = before.networks["score"].state_dict()
    assert any(not torch.equal(last[f"purifier.{key}"], value) for key, value in start.items())

    (tmp_path / "settings.yaml").write_text(SETTINGS)
    arguments = ["--run", str(copies), "--base", str(folder), "--name", "hard", "--out", str(made),
                 "--settings", str(tmp_path / "settings.yaml")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["x", "harden", *arguments])
    export_command.main()
    assert set(json.loads(capsys.readouterr().out)["bytes"]) == {"classifier", "purifier"}
    after = bundle.load(made)
    assert (made / "classifier.onnx").read_bytes() == graph == (folder / "classifier.onnx").read_bytes()
    assert after.parts["classifier"] == before.parts["classifier"]
    x = torch.rand(3, 3, 16, 16)
    assert torch.equal(after.classifier(x), before.classifier(x))
    flags = torch.zeros(3, dtype=torch.bool)
    answers = engine_on("cpu", after).answer(x, [1, 2, 3], after.settings["fast"], flags)
    assert all(answer.result.mean.isfinite().all() for answer in answers)


def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    asked = config(folder, mode="purifier", updates=3, check_every=2)
    harden.train(asked, tmp_path, tmp_path / "whole", "cpu")
    for _ in range(20):
        try:
            with sitting(0):
                harden.train(asked, tmp_path, tmp_path / "parts", "cpu")
            break
        except Paused:
            continue
    whole, parts = (load_file(tmp_path / run / "weights.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_a_purifier_learns_before_a_transformer(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tmp_path / "base"
    mine = write_bundle(tmp_path / "larger", base, exported(Vit(32, 10), 32), size=32, to=16)
    asked = config(mine, mode="stability", updates=40, check_every=40, log_every=10, lr=0.01, sigma=0.2)
    harden.train(asked, tmp_path, tmp_path / "run", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.98 * losses[0]


def test_what_would_train_the_graph_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes in ({"mode": "both"}, {"mode": "classifier"}, {"mode": "purifier", "fresh": True}):
        with pytest.raises(BundleError, match="an ONNX graph, which stays as it is: --mode purifier"):
            harden.train(config(folder, **changes), tmp_path, tmp_path / "no", "cpu")
    assert not (tmp_path / "no").exists()
    arguments = ["harden", "--bundle", str(folder), "--data", str(tmp_path), "--out", str(tmp_path / "said"),
                 "--held-out", "16"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["x", *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert "which stays as it is" in capsys.readouterr().err
    new = config(folder, mode="both", classifier="compact-4-4-4", updates=2, check_every=2)
    assert harden.train(new, tmp_path, tmp_path / "new", "cpu")["updates"] == 2


def test_images_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(folder, mode="stability")
    given = harden_toys.pictures("toys", tmp_path, "train")
    wide = dataclasses.replace(given, images=given.images.repeat(1, 1, 2, 2))
    monkeypatch.setattr(datasets, "load", lambda *_: wide)
    with pytest.raises(DataError, match=r"for images of \(3, 16, 16\), cifar10 has \(3, 32, 32\)"):
        harden.train(asked, tmp_path, tmp_path / "a", "cpu")
    other = dataclasses.replace(given, labels=given.labels + 10)
    monkeypatch.setattr(datasets, "load", lambda *_: other)
    with pytest.raises(DataError, match="knows 10 classes, and toys has labels up to 11"):
        harden.train(asked, tmp_path, tmp_path / "b", "cpu")


def test_a_run_of_another_graph_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    run, asked = tmp_path / "run", config(folder, mode="stability", updates=2, check_every=2)
    harden.train(asked, tmp_path, run, "cpu")
    with pytest.raises(BundleError, match="make a bundle of it"):
        harden_parts.of_files(run)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    settings = tmp_path / "settings.yaml"
    with pytest.raises(BundleError, match="--base must be the bundle that was hardened"):
        hardened.build(run, tmp_path / "base", settings, "x", tmp_path / "made")
    torch.manual_seed(9)
    write_bundle(folder, tmp_path / "base", exported(seen(Separable(10), 16), 16), size=16, to=16)
    with pytest.raises(DataError, match="another classifier: choose another --out"):
        harden.train(asked, tmp_path, run, "cpu")
    (run / "classifier.onnx").write_bytes((folder / "classifier.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"classifier\.onnx"):
        hardened.build(run, folder, settings, "x", tmp_path / "made")


def test_what_cannot_be_differentiated_is_refused_before_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = harden_session.begin(config(folder, mode="purifier"), tmp_path, tmp_path / "run", "cpu")
    assert isinstance(session.parts["classifier"], Brought)

    class Rounded(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)).round().repeat(1, 4)[:, :10]

    mine = write_bundle(tmp_path / "rounded", tmp_path / "base", exported(Rounded(), 16), size=16, to=16)
    with pytest.raises(NoGradient, match="zero everywhere"):
        harden.train(config(mine, mode="stability"), tmp_path, tmp_path / "no", "cpu")
