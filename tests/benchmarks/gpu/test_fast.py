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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert [row.get("failed") for row in rows] == ["RuntimeError: no compiler", None]


@pytest.mark.slow
def test_a_fault_while_a_contender_is_timed_loses_nothing_that_came_before(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an illegal access on a GPU: it shows some calls later, and from then on everything fails."""
    calls, broken = 0, False

    def faulty(self: object, size: int) -> fast.common.Work:
        def work() -> None:
            nonlocal calls, broken
            calls += 1
            broken = broken or calls > 3
            if broken:
                raise RuntimeError("an illegal memory access")

        return work

    sound = fast.Contenders.explicit

    def after(self: fast.Contenders, size: int) -> fast.common.Work:
        if broken:
            raise RuntimeError("an illegal memory access")
        return sound(self, size)

    monkeypatch.setattr(fast.Contenders, "packaged", faulty)
    monkeypatch.setattr(fast.Contenders, "explicit", after)
    kept: list[list[str]] = []
    found = fast.measure(
        tiny,
        torch.device("cpu"),
        (2,),
        ("AOTInductor", "eager explicit", "eager autograd"),
        tiny=True,
        keep=lambda found: kept.append([row["runner"] for row in found["rows"]]),
    )
    assert [(row["runner"], row.get("failed")) for row in found["rows"]] == [
        ("eager autograd", None),
        ("AOTInductor", "RuntimeError: an illegal memory access"),
        ("eager explicit", "RuntimeError: an illegal memory access"),
    ]
    assert found["rows"][0]["us"] > 0
    assert calls == 4
    assert kept[:3] == [[], ["eager autograd"], ["eager autograd", "AOTInductor"]]


@pytest.mark.slow
def test_the_sizes_of_the_targets_come_first_and_every_row_is_written_when_it_is_known(
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
    assert kept == [0, 1, 2]
