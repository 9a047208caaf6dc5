"""The dry run of item 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import fast
from metastable.bundle import Bundle

NAMES = (
    "eager autograd",
    "eager explicit",
    "graphs f32",
    "graphs f16 from and to the host",
)


def test_the_dry_run_times_all_and_judges_the_targets(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast.json"
    arguments = [
        "--device",
        "cpu",
        "--tiny",
        "--bundle",
        str(tiny_folder),
        "--sizes",
        "2",
        "--only",
        ";".join(NAMES),
    ]
    monkeypatch.setattr(sys, "argv", ["fast", *arguments, "--out", str(out)])
    fast.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(out.read_text())
    good = {row["runner"]: row for row in result["rows"] if "us" in row}
    assert set(NAMES) <= set(good)
    assert all(row["us"] > 0 and row["ratio"] > 0 and row["floor_us"] >= 0 for row in good.values())
    assert good["eager autograd"]["ratio"] == 1
    assert [row["runner"] for row in result["rows"] if "failed" in row] == []
    assert [target["met"] for target in result["targets"]] == [None, None, None]
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's compiler needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's own call
def test_what_is_compiled_makes_the_same_score(tiny: Bundle) -> None:
    contenders = fast.Contenders(tiny, torch.device("cpu"), (2,))
    x = torch.rand(3, *tiny.shape)
    assert torch.allclose(contenders.package()(x), tiny.scores["energy"](x), atol=1e-5)
    for name in ("graphs tf32 fused", "torch.compile"):
        contenders.makers[name](2)()


def test_a_contender_that_fails_stops_no_other(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: object, size: int) -> None:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(fast.Contenders, "packaged", broken)
    arguments = ["--device", "cpu", "--tiny", "--bundle", str(tiny_folder), "--sizes", "1"]
    monkeypatch.setattr(sys, "argv", ["fast", *arguments, "--only", "AOTInductor;eager explicit"])
    fast.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row.get("failed") for row in rows] == [None, "RuntimeError: no compiler"]


def test_the_sizes_of_the_targets_come_first_and_every_size_is_written_when_it_is_known(
    tiny: Bundle,
) -> None:
    assert fast.SIZES[:2] == (100, 6000)
    assert {256, 384, 512} < set(fast.SIZES)
    kept: list[int] = []
    fast.measure(
        tiny,
        torch.device("cpu"),
        (2, 1),
        ("eager explicit",),
        tiny=True,
        keep=lambda found: kept.append(len(found["rows"])),
    )
    assert kept == [1, 2]
