"""The dry run of item 1, and that its checks can fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import correct
from metastable import cuda_noise
from metastable.bundle import Bundle

CPU = torch.device("cpu")


@pytest.mark.parametrize("part", ["noise", "scores", "runner", "engine", "leak"])
def test_the_dry_run_passes(
    part: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "deep" / "correct.json"
    arguments = ["--device", "cpu", "--tiny", "--bundle", str(tiny_folder), "--only", part, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["correct", *arguments])
    correct.main()
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert result == json.loads(out.read_text())
    assert len(printed) == len(result["rows"]) + 2
    assert all(row["ok"] for row in result["rows"])


def test_noise_that_repeats_itself_is_found(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cuda_noise.update

    def stuck(x: torch.Tensor, *rest: object) -> None:
        real(x, *rest[:3], 0)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda_noise, "update", stuck)
    bad = [row["check"] for row in correct.noise(tiny, CPU, correct.TINY) if not row["ok"]]
    assert "noise: correlation between steps" in bad
    assert "noise: correlation between chains" not in bad


def test_a_part_that_breaks_off_fails_and_the_others_go_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "correct.json", []

    def first(*_: object) -> list[correct.Check]:
        raise RuntimeError("no kernel\nand a long story")

    def second(*_: object) -> list[correct.Check]:
        seen.append(json.loads(out.read_text())["rows"])  # what came before is on disk already
        return [correct.check("fine", 0.0, 1.0)]

    monkeypatch.setattr(correct, "PARTS", {"first": first, "second": second})
    arguments = ["--device", "cpu", "--tiny", "--bundle", str(tiny_folder), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["correct", *arguments])
    with pytest.raises(SystemExit) as end:
        correct.main()
    assert end.value.code == 1
    broken = {"check": "first: RuntimeError: no kernel", "ok": False}
    assert seen == [[broken]]
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert [row["check"] for row in json.loads(out.read_text())["rows"]] == [broken["check"], "fine"]


def test_kernels_that_have_run_least_come_last() -> None:
    """An illegal access ends everything that the process does on the GPU after it."""
    names = list(correct.PARTS)
    assert (names[0], names[-1]) == ("scores", "convolutions")
    assert correct.PARTS["convolutions"] is correct.convolutions


def test_a_number_that_is_none_does_not_pass() -> None:
    assert not correct.check("x", float("nan"), 1.0)["ok"]
    assert correct.check("x", 1.0, 1.0)["ok"]
