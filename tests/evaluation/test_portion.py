"""--n and --skip ask for images that are there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metastable import datasets
from metastable.errors import DataError
from metastable.evaluation import __main__ as command
from metastable.evaluation.portion import portion

SET = datasets.ImageSet(
    "noise", "test", torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.arange(10), list("abcdefghij")
)


def test_as_many_as_are_asked_for() -> None:
    first, rest = portion(SET, 4), portion(SET, 6, skip=4)
    assert (len(first), len(rest)) == (4, 6)
    assert sorted([*first.labels.tolist(), *rest.labels.tolist()]) == list(range(10))


@pytest.mark.parametrize(
    ("n", "skip", "said"),
    [
        (11, 0, "there are 10 images, not 11: give a lower --n$"),
        (7, 4, "there are 6 images after --skip 4, not 7: give a lower --n or --skip"),
        (1, 12, "there are 0 images"),
        (0, 0, "--n must be 1 or more, not 0"),
        (-3, 0, "--n must be 1 or more"),
    ],
)
def test_more_or_none_are_refused(n: int, skip: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        portion(SET, n, skip=skip)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A data folder with 20 test images, 10 of each batch of training images."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, n in [("test_batch.bin", 20), *((f"data_batch_{i}.bin", 10) for i in range(1, 6))]:
        records = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table", "--n", "0"], "--n must be 1 or more, not 0"),
        (["table", "--n", "21"], "there are 20 images"),
        (["robust", "--attack", "pgd", "--n", "21"], "there are 20 images"),
        (["controls", "--n", "21"], "there are 20 images"),
        (
            ["controls", "--suite", "nowhere"],
            "there is no folder nowhere: --suite names the --work of a suite",
        ),
        (["certify", "--settings", "fast", "--n", "21"], "there are 20 images"),
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_run_leaves_its_work_folder_free(
    words: list[str],
    said: str,
    cifar: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(cifar)
    common = ["--bundle", str(tiny_folder), "--data", str(cifar), "--work", "work"]
    monkeypatch.setattr(sys, "argv", ["evaluation", *words, *common])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (cifar / "work").exists()


def test_a_rate_that_cannot_be_set_is_refused_before_anything_is_read(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, n in (("0", "100"), ("1", "100"), ("-0.1", "100"), ("nan", "100"), ("0.001", "100")):
        words = [f"--false-positive-rate={rate}", "--n", n, "--data", "nowhere", "--bundle", "nowhere"]
        monkeypatch.setattr(sys, "argv", ["evaluation", "calibrate", *words])
        with pytest.raises(SystemExit) as end:
            command.main()
        assert end.value.code == 2
        assert f"cannot be set on {n} images" in capsys.readouterr().err
