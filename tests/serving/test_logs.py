"""What a line of the log says, what it does not, and how much is logged."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from metastable.serving import logs
from metastable.serving.faults import report
from metastable.serving.lines import Target

SECRET = "a client's\ntext"


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_a_line_is_one_object(path: Path) -> None:
    with logs.opened("json", "info", Target(path)):
        logging.getLogger("metastable.x").info(
            "two\nlines of %s", "ours", extra={"fields": {"a": 1, "b": None}}
        )
    [line] = written(path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "metastable.x",
        "event": "two\nlines of ours",
        "a": 1,
        "b": None,
    }


def test_others_may_quote_a_client_and_are_not_quoted(path: Path) -> None:
    with logs.opened("json", "debug", Target(path)):
        logging.getLogger("PIL.Image").warning("cannot read %s", SECRET)
        try:
            raise ValueError(SECRET)
        except ValueError:
            logging.getLogger("asyncio").exception("%s", SECRET)
            logging.getLogger("metastable").exception("ours")
        report("a request failed", ValueError(SECRET))
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(SECRET, UserWarning, stacklevel=1)
    text = path.read_text()
    assert "client's" not in text.replace("may quote a client", "")
    other, excepted, ours, fault, warned = written(path)
    assert other["event"].startswith("PIL.Image said something at test_logs:")
    for line in (excepted, ours):
        assert line["exception"] == "ValueError"
        assert line["at"][0].startswith("test_logs.py:")
    assert "ValueError" in fault["event"]
    assert warned["logger"] == "py.warnings"


def test_people_get_one_line_too(path: Path) -> None:
    with logs.opened("text", "info", Target(path)):
        fields = {"code": "ok", "seconds": {"total": 0.5}, "setting": None, "odd": 'x "y'}
        logging.getLogger("metastable.x").info("request", extra={"fields": fields})
        logging.getLogger("metastable.x").error("a fault\nat some place")
    first, second, third = path.read_text().splitlines()
    assert first.split(" ", 1)[1] == 'info request code=ok seconds=total:0.5 odd="x \\"y"'
    assert second.endswith(" error a fault")
    assert third == "    at some place"


def test_the_level_chooses_and_others_stay_quiet(path: Path) -> None:
    with logs.opened("json", "warning", Target(path)):
        for name in ("metastable.x", "httpx"):
            logging.getLogger(name).info("no")
            logging.getLogger(name).warning("yes")
    assert [line["logger"] for line in written(path)] == ["metastable.x", "httpx"]
    path.unlink()
    with logs.opened("json", "debug", Target(path)):
        for name in ("metastable.x", "httpx"):
            logging.getLogger(name).debug("ours alone")
    assert [line["logger"] for line in written(path)] == ["metastable.x"]


SIGNALLED = """
import logging, signal, sys
from pathlib import Path
from metastable.serving import logs
from metastable.serving.lines import Target

log = logging.getLogger("metastable.x")

def send(number, times, wanted):
    for _ in range(times):
        signal.raise_signal(number)
    assert level.name == wanted, level.name

with logs.opened("json", "warning", Target(Path(sys.argv[1]))) as level:
    log.info("unheard")
    send(signal.SIGUSR1, 1, "info")
    log.info("heard")
    send(signal.SIGUSR1, 3, "debug")
    log.debug("all")
    send(signal.SIGUSR2, 5, "error")
    log.warning("unheard")
assert signal.getsignal(signal.SIGUSR1) == signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
"""


@pytest.mark.slow
def test_signals_change_it_while_it_runs(path: Path) -> None:
    # In a process of its own: where it fails, such a signal ends who gets it.
    done = subprocess.run([sys.executable, "-c", SIGNALLED, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    events = [line["event"] for line in written(path)]
    assert "unheard" not in events
    said = [event.rpartition(" ")[2] for event in events if event.startswith("the level")]
    assert said == ["info", "debug", "debug", "debug", *("info", "warning"), *3 * ["error"]]
    assert [event for event in events if not event.startswith("the level")] == ["heard", "all"]
    assert {line["level"] for line in written(path) if line["event"].startswith("the level")} == {"info"}


def test_all_is_as_before_at_the_end(path: Path) -> None:
    root, ours = logging.getLogger(), logging.getLogger("metastable")
    before = root.level, ours.level, list(root.handlers)
    with logs.opened("json", "debug", Target(path)):
        assert ours.level == logging.DEBUG
    assert (root.level, ours.level, list(root.handlers)) == before
