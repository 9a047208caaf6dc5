"""Lines of a log: written in order, and never in the way of those who log."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metastable.errors import SettingsError
from metastable.serving.lines import MOST, Lines, Target

PATIENCE = 30.0


@contextmanager
def logger(target: Target) -> Iterator[tuple[logging.Logger, Lines]]:
    found, lines = logging.Logger("own"), Lines(target)
    found.addHandler(lines)
    try:
        yield found, lines
    finally:
        lines.close()


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_lines_come_in_order_and_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logger(Target(path)) as (log, lines):
        for i in range(3000):
            log.info("%d", i)
    assert path.read_text().split() == [str(i) for i in range(3000)]
    assert lines.lost == 0
    assert path.stat().st_mode & 0o027 == 0  # others may not read it, or write


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    with logger(Target(path)) as (log, _):
        log.info("before")
        until(lambda: path.read_text() == "before\n")
        path.rename(old)
        log.info("after")
        until(lambda: path.exists() and path.read_text() == "after\n")
        path.unlink()
        log.info("again")
        until(lambda: path.exists() and path.read_text() == "again\n")
    assert old.read_text() == "before\n"


def test_a_full_disk_costs_lines_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    with logger(Target(path)) as (log, lines):
        for _ in range(5):
            log.info("lost")
        until(lambda: lines.lost == 5)
        path.unlink()  # there is room again
        log.info("kept")
        until(lambda: path.exists() and path.read_text().endswith("kept\n"))
        log.info("and more")
    assert path.read_text() == "lines were lost\nkept\nand more\n"


@pytest.mark.parametrize("number", [None, 1_000_000], ids=["left by its reader", "not open"])
def test_a_closed_stderr_costs_lines_alone(number: int | None) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with logger(Target(writing if number is None else number)) as (log, lines):
        log.info("lost")
        until(lambda: lines.lost == 1)
    os.close(writing)


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    try:
        with logger(Target(writing)) as (log, lines):
            for i in range(2 * MOST):
                log.info("%d %s", i, "x" * 100)
            assert lines.lost > 0
            read = bytearray()
            other = threading.Thread(target=_read, args=(reading, read), daemon=True)
            other.start()
            until(lines._waiting.empty)
            log.info("the last")
            until(lambda: b"the last\n" in read)
            whole = read.decode().splitlines()
        assert f"{2 * MOST - 1} " not in read.decode()
        assert "lines were lost" in whole
        assert [line.split()[0] for line in whole[:100]] == [str(i) for i in range(100)]
    finally:
        os.close(writing)
        other.join(PATIENCE)
        os.close(reading)


def _read(reading: int, found: bytearray) -> None:
    while piece := os.read(reading, 65536):
        found += piece


def test_a_pipe_that_somebody_made_non_blocking_gets_all() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    read = bytearray()
    with logger(Target(writing)) as (log, lines):
        for i in range(3000):
            log.info("%d %s", i, "x" * 100)
        until(lambda: not lines._waiting.qsize() > 2900)
        other = threading.Thread(target=_read, args=(reading, read), daemon=True)
        other.start()
        log.info("the last")
        until(lambda: read.endswith(b"the last\n"))
    os.close(writing)
    other.join(PATIENCE)
    os.close(reading)
    assert [line.split()[0] for line in read.decode().splitlines()] == [*map(str, range(3000)), "the"]


def test_a_line_that_was_cut_ends_before_the_next(tmp_path: Path) -> None:
    class Cut(Target):
        left = 7

        def _some(self, data: memoryview) -> int:
            if self.left == 0:
                self.left = 1000
                raise OSError(28, "no space")
            written = super()._some(data[: self.left])
            self.left -= written
            return written

    path = tmp_path / "log"
    target = Cut(path)
    assert not target.write("0123456789\n")
    assert target.write("next\n")
    target.close()
    assert path.read_text() == "0123456\nnext\n"


def test_a_message_that_does_not_fit_its_arguments_harms_nobody(tmp_path: Path) -> None:
    with logger(Target(tmp_path / "log")) as (log, lines):
        log.info("%d", "text")
        log.info("fine")
    assert lines.lost == 1
    assert "fine" in (tmp_path / "log").read_text()


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(SettingsError, match="cannot be written"):
            Target(path)
