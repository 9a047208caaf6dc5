from __future__ import annotations

import sys

import pytest

from metastable.client import progress


def test_a_bar_is_moved(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with progress.counted("bar", 2) as tick:
        tick()
        tick()
    assert "2/2" in capsys.readouterr().err


def test_without_tqdm_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress.counted("bar", 1) as tick:
        tick()
    assert capsys.readouterr().err == ""


def test_a_function_is_told_and_nothing_may_be() -> None:
    told: list[tuple[int, int]] = []
    with progress.counted(lambda *said: told.append(said), 2) as tick:
        tick()
    with progress.counted(None, 2) as tick:
        tick()
    assert told == [(1, 2)]
