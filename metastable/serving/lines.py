"""Lines of a log, written by a thread of their own: requests go on whatever becomes of the disk or of stderr.

At most MOST lines wait.  Those above that, and those that cannot be written, are lost and counted; the count
is told as soon as something can be written again.  A file that was moved away is opened anew, so that
logrotate needs no signal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import stat
import threading
from pathlib import Path

from metastable.errors import SettingsError

MOST = 10_000
TOGETHER = 500
"""Lines of one write."""
PATIENCE = 1.0
"""Seconds that the last lines have at the end."""


class Target:
    """Where lines go: a file that others may move away, or one that is open already.

    Args:
        path: opened to append, with mode 0640 if it is new; or the number of an open file.

    Raises SettingsError for a path that cannot be written.
    """

    def __init__(self, path: Path | int) -> None:
        self._path = None if isinstance(path, int) else path
        self._file = path if isinstance(path, int) else -1
        self._torn = False
        if self._path is not None:
            try:
                self._open()
            except OSError as error:
                raise SettingsError(f"the log {path} cannot be written: {error.strerror}") from None

    def write(self, text: str) -> bool:
        """Whether all of it was written; what was begun of a line before is ended first."""
        data = memoryview((("\n" if self._torn else "") + text).encode("utf-8", "replace"))
        try:
            self._follow()
            while data:
                data = data[self._some(data) :]
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._path is not None and self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1

    def _some(self, data: memoryview) -> int:
        try:
            written = os.write(self._file, data)
        except BlockingIOError:  # somebody has made stderr non-blocking
            select.select([], [self._file], [], PATIENCE)
            return 0
        self._torn = written > 0 and data[written - 1] != ord("\n")
        return written

    def _open(self) -> None:
        assert self._path is not None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open(self._path, flags, 0o640)
        if stat.S_ISREG(os.fstat(self._file).st_mode):
            os.set_blocking(self._file, True)

    def _follow(self) -> None:
        """Open the path again where it is another file by now, or none."""
        if self._path is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._file >= 0 and os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                return
        self.close()
        self._torn = False
        self._open()


class Lines(logging.Handler):
    """Formats in the thread that logs, which is cheap, and writes in another.

    It may be used in a handler of signals: nothing in it waits.

    Attributes:
        lost: lines that could not be written so far.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = self._failed = self._told = 0
        self._thread = threading.Thread(target=self._run, name="metastable-log", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        return self._dropped + self._failed

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # of a message whose arguments do not fit it
            self._dropped += 1
            return
        if self._waiting.qsize() >= MOST:
            self._dropped += 1
        else:
            self._waiting.put(line + "\n")

    def close(self) -> None:
        """Write what waits, if that takes no longer than PATIENCE."""
        self._waiting.put(None)
        self._thread.join(PATIENCE)
        super().close()

    def _run(self) -> None:
        over = False
        while not over:
            lines = [self._waiting.get()]
            while len(lines) < TOGETHER and not self._waiting.empty():
                lines.append(self._waiting.get())
            over = None in lines
            self._write([line for line in lines if line is not None])
        self._target.close()

    def _write(self, lines: list[str]) -> None:
        lost = self.lost
        if lost > self._told:
            lines = [self._loss(lost - self._told), *lines]
        if not lines:
            return
        if self._target.write("".join(lines)):
            self._told = lost
        else:
            self._failed += len(lines) - (lost > self._told)

    def _loss(self, count: int) -> str:
        fields = {"lost": count}
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "lines were lost", (), None)
        record.__dict__["fields"] = fields
        return self.format(record) + "\n"
