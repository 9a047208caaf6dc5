"""The log that a server in this process writes, read line by line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metastable.serving import logs
from metastable.serving.lines import Target
from tests.serving.door.running import PATIENCE

MARK = "s3cr3t"
"""What clients send in these tests, wherever they can."""


class Log:
    """Lines that a server has written so far."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, 0

    @property
    def text(self) -> str:
        return self._path.read_text()

    def next(self, count: int = 1) -> list[dict[str, Any]]:
        """The next lines of requests and refusals; there must be just as many."""
        ends = time.monotonic() + PATIENCE
        while len(found := self._lines()[self._seen :]) < count:
            assert time.monotonic() < ends, found
            time.sleep(0.01)
        self._seen += len(found)
        assert len(found) == count, found
        return found

    def _lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in lines if line["event"] in ("request", "refused")]


@contextmanager
def logging_to(path: Path, level: str = "info") -> Iterator[Log]:
    with logs.opened("json", level, Target(path)):
        yield Log(path)
