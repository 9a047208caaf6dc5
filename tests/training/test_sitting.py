"""Training in sittings: a run that pauses ends as one that does not."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metastable.training import __main__ as command
from metastable.training.energy import EnergyMlConfig, train_energy_ml
from metastable.training.run import Paused, Run, sitting

TINY = EnergyMlConfig(
    dataset="mnist", features=4, updates=2, switch=1, batch=4, steps=2, bank=6, report_every=2, long_steps=2
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = torch.randint(0, 256, (9, 784), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for stem in ("train", "t10k"):
        head = struct.pack(">4I", 0x803, 9, 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + pixels.numpy().tobytes())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 9) + bytes(9))
    return tmp_path / "data"


@pytest.mark.slow
def test_a_run_of_many_sittings_ends_as_one_of_a_single_sitting(data: Path, tmp_path: Path) -> None:
    train_energy_ml(TINY, data, tmp_path / "whole", "cpu")
    for _ in range(TINY.updates):
        with sitting(0), pytest.raises(Paused, match="run the same command again"):
            train_energy_ml(TINY, data, tmp_path / "parts", "cpu")
    with sitting(0):  # nothing is left to do but the end
        train_energy_ml(TINY, data, tmp_path / "parts", "cpu")
    whole, parts = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_sitting_ends_with_its_block(tmp_path: Path) -> None:
    with sitting(0), pytest.raises(Paused):
        Run(tmp_path / "a", TINY).checkpoint(dict)
    Run(tmp_path / "b", TINY).checkpoint(dict)
    assert not (tmp_path / "b" / "checkpoint.pt").exists()
    with sitting(0):  # what is finished is not paused
        Run(tmp_path / "b", TINY).checkpoint(dict, now=True)


@pytest.mark.slow
def test_the_command_says_that_it_paused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--dataset mnist --features 4 --updates 3 --batch 4 --steps 2 --bank 6 --long-steps 2"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *(
                "training",
                "energy-ml",
                "--data",
                str(data),
                "--out",
                str(tmp_path / "run"),
                "--device",
                "cpu",
            ),
            *("--minutes", "0", *arguments.split()),
        ],
    )
    command.main()
    assert "not finished" in json.loads(capsys.readouterr().out)["paused"]
