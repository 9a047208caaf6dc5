"""Run folders: resuming, refusing another configuration, atomic checkpoints; the moving average."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from metastable.errors import DataError
from metastable.training.run import KEPT, PASSING, Ema, Run, device_of, sitting


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    name: str = "x"


def test_a_run_resumes_with_its_state_and_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "new" / "folder", Config())
    assert run.resume() is None
    run.checkpoint(lambda: {"step": 3, "w": torch.arange(3)}, now=True)
    state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    torch.save({**state, "spent_s": 100.0}, run.folder / "checkpoint.pt")

    again = Run(run.folder, Config())
    resumed = again.resume()
    assert resumed is not None
    assert resumed["step"] == 3
    assert torch.equal(resumed["w"], torch.arange(3))
    assert 100 <= again.spent_s < 160


def test_another_configuration_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    Run(tmp_path, Config())
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(DataError, match="another configuration"):
        Run(tmp_path, Config(lr=0.2))
    assert (tmp_path / "config.json").read_text() == before


def test_some_settings_may_change_and_new_ones_have_their_defaults(tmp_path: Path) -> None:
    Run(tmp_path, Config())
    run = Run(tmp_path, Config(lr=0.2), free=("lr",))
    assert run.config == json.loads((tmp_path / "config.json").read_text()) == {"lr": 0.2, "name": "x"}
    (tmp_path / "config.json").write_text('{"lr": 0.1}')  # from before there was a name
    Run(tmp_path, Config())
    (tmp_path / "config.json").write_text('{"lr": 0.1, "gone": 1}')
    with pytest.raises(DataError, match=r"another configuration \(gone, name\)"):
        Run(tmp_path, Config(name="y"))


@pytest.mark.slow
def test_a_large_checkpoint_is_cut_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, Config())
    bank = torch.rand(9 * 2**20)  # 36 MiB
    run.checkpoint(lambda: {"bank": bank}, now=True)
    assert not (tmp_path / "checkpoint.pt").exists()
    found = list(tmp_path.glob("checkpoint*"))
    assert len(found) == 3
    assert max(path.stat().st_size for path in found) < 16 * 2**20
    resumed = Run(tmp_path, Config()).resume()
    assert resumed is not None
    assert torch.equal(resumed["bank"], bank)


def test_weights_are_kept_in_half_precision_every_minute(tmp_path: Path) -> None:
    network = nn.BatchNorm1d(2)
    with torch.no_grad():
        network.bias[0] = 1e6  # out of the range of half precision
    kept = tmp_path / KEPT
    Run(tmp_path, Config()).keep(network)
    assert not kept.exists()
    with sitting(0):
        Run(tmp_path, Config()).keep(network)
    assert kept.exists()
    kept.unlink()
    Run(tmp_path, Config(), keep_s=0.0).keep(network)
    found = load_file(kept)
    assert {name: value.dtype for name, value in found.items()} == {
        "weight": torch.float16,
        "bias": torch.float32,
        "running_mean": torch.float16,
        "running_var": torch.float16,
        "num_batches_tracked": torch.int64,
    }
    assert found["bias"][0] == 1e6


def test_checkpoints_wait_until_they_are_due(tmp_path: Path) -> None:
    def never() -> dict[str, Any]:
        raise AssertionError("not due")

    Run(tmp_path, Config(), every_s=1e9).checkpoint(never)
    assert not (tmp_path / "checkpoint.pt").exists()
    Run(tmp_path, Config(), every_s=0.0).checkpoint(lambda: {"step": 1})
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, Config())
    run.checkpoint(lambda: {"step": 1}, now=True)

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        run.checkpoint(lambda: {"step": 2}, now=True)
    resumed = Run(tmp_path, Config()).resume()
    assert resumed is not None
    assert resumed["step"] == 1


def test_log_and_finish(tmp_path: Path) -> None:
    run = Run(tmp_path, Config())
    assert run.read_log() == []
    run.log(step=1, loss=0.123456789)
    run.log(step=2, loss=0.1)
    assert [(line["step"], line["loss"]) for line in run.read_log()] == [(1, 0.123457), (2, 0.1)]

    network = nn.Linear(3, 2)
    result = run.finish(network, {"accuracy": 0.5})
    assert result == json.loads((tmp_path / "metrics.json").read_text())
    assert (result["accuracy"], result["parameters"]) == (0.5, 8)
    assert result["config"] == {"lr": 0.1, "name": "x"}
    assert torch.equal(load_file(tmp_path / "weights.safetensors")["weight"], network.weight)


def test_average_follows_quickly_at_first_and_slowly_later() -> None:
    network = nn.BatchNorm1d(1)  # weights, and an integer buffer
    average = Ema(network, 0.99)
    with torch.no_grad():
        network.weight.fill_(2.0)
    assert network.num_batches_tracked is not None
    network.num_batches_tracked.fill_(7)
    average.update(network, 0)  # decay 1 / 10: nine tenths of the way from 1 to 2
    assert average.shadow["weight"].item() == pytest.approx(1.9)
    assert average.shadow["num_batches_tracked"].item() == 7
    average.load({"weight": torch.tensor([1.0])})
    average.update(network, 10**6)  # decay 0.99
    assert average.shadow["weight"].item() == pytest.approx(1.01)
    average.copy_to(network)
    assert network.weight.item() == pytest.approx(1.01)


def test_a_device_may_be_named() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of().type in ("cpu", "cuda")


def test_passing_fields_may_change(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Faster:
        lr: float = 0.1
        graph: bool = field(default=True, metadata=PASSING)

    Run(tmp_path, Faster())
    assert "graph" not in Run(tmp_path, Faster(graph=False)).config
    with pytest.raises(DataError, match="another configuration"):
        Run(tmp_path, Faster(lr=0.2))
