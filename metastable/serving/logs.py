"""The log of a server: one line an event, for machines or people, at a level that is changed while it runs.

    with logs.opened("json", "info", Target(2)):
        ...                     # SIGUSR1: one level more, SIGUSR2: one less

Messages of this project are sentences of its own.  Those of other packages may quote a client, so of these
only the place is told; of exceptions only the type and the place.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from metastable.serving.lines import Lines, Target

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
OURS = ("metastable", "deploy", "handlers")
"""Loggers whose messages are our own, and those below them."""
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
HARMLESS = (*OURS, "opentelemetry")
"""Others whose messages say nothing of requests: what became of spans."""

_log = logging.getLogger("metastable.serving")


class Json(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `event`, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(told(record), separators=(",", ":"), default=lambda value: type(value).__name__)


class Text(logging.Formatter):
    """The same for people: `time level event name=value ...`, the lines of a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        found = told(record)
        del found["logger"]
        head = f"{found.pop('time')} {found.pop('level')} {found.pop('event')}"
        more = [f"{name}={_plain(value)}" for name, value in found.items() if value is not None]
        first, *rest = head.splitlines()
        return "\n".join([" ".join([first, *more]), *("    " + line for line in rest)])


def told(record: logging.LogRecord) -> dict[str, Any]:
    """What is said of a record.

    Raises what formatting its message raises.
    """
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    found: dict[str, Any] = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }
    if record.name.split(".")[0] in HARMLESS:
        found["event"] = record.getMessage()
    else:
        found["event"] = f"{record.name} said something at {record.module}:{record.lineno}"
    if record.exc_info and record.exc_info[0] is not None:
        frames = traceback.extract_tb(record.exc_info[2])
        found["exception"] = record.exc_info[0].__qualname__
        found["at"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    fields = getattr(record, "fields", None)
    return found | fields if isinstance(fields, dict) else found


class Level:
    """How much is logged, from `error` to `debug`.

    Other packages never say less than warnings: what they say at their level `debug` is much.
    """

    def __init__(self, name: str) -> None:
        self._at = LEVELS.index(name)
        self._set()

    @property
    def name(self) -> str:
        return LEVELS[self._at]

    def step(self, more: bool) -> None:
        """One level further, if there is one; the log says which it is now."""
        self._at = max(0, self._at - 1) if more else min(len(LEVELS) - 1, self._at + 1)
        self._set()
        # At any level: whoever has sent the signal wants to know.
        _log.handle(
            _log.makeRecord(
                _log.name, logging.INFO, __file__, 0, "the level of the log is now %s", (self.name,), None
            )
        )

    def _set(self) -> None:
        number = getattr(logging, self.name.upper())
        for name in OURS:
            logging.getLogger(name).setLevel(number)
        logging.getLogger().setLevel(max(number, logging.WARNING))


@contextlib.contextmanager
def opened(format: str, level: str, target: Target) -> Iterator[Level]:
    """Log there, and change the level at signals where this is the main thread; as before at the end.

    Args:
        format: one of FORMATS.
        level: one of LEVELS.
    """
    root, lines = logging.getLogger(), Lines(target)
    lines.setFormatter(Json() if format == "json" else Text())
    before = {name: logging.getLogger(name).level for name in (None, *OURS)}
    root.addHandler(lines)
    logging.captureWarnings(True)
    chosen = Level(level)
    try:
        with _signals(chosen):
            yield chosen
    finally:
        logging.captureWarnings(False)
        root.removeHandler(lines)
        lines.close()
        for name, number in before.items():
            logging.getLogger(name).setLevel(number)


@contextlib.contextmanager
def _signals(level: Level) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def changed(number: int, frame: FrameType | None) -> None:
        level.step(more=number == signal.SIGUSR1)

    before = {number: signal.signal(number, changed) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plain(value: Any) -> str:
    """A value on one line, without the quotes that a short word does not need."""
    if isinstance(value, dict):
        return ",".join(f"{name}:{_plain(one)}" for name, one in value.items())
    text = json.dumps(value)
    return text[1:-1] if isinstance(value, str) and " " not in value and text[1:-1] == value else text
