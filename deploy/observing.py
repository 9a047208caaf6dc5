"""The log and the traces of a server, as its command line and its environment ask for them.

with observing.opened(chosen) as observer:
    server.run(app, observer=observer, ...)
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from metastable.errors import MetastableError
from metastable.serving import logs
from metastable.serving.door.observing import Observer
from metastable.serving.lines import Target
from metastable.serving.tracing import Tracing

log = logging.getLogger(__name__)
STDERR = 2


@contextlib.contextmanager
def opened(chosen: argparse.Namespace) -> Iterator[Observer]:
    """Log, and send spans, until the end.

    Raises SettingsError for a file that cannot be written.
    """
    with logs.opened(chosen.log_format, chosen.log_level, Target(_place(chosen.log_file))):
        tracing = _tracing()
        try:
            yield Observer(tracing)
        finally:
            if tracing is not None:
                tracing.close()


def _place(file: Path | None) -> Path | int:
    """stderr where no file is named, but not what has its number where a server was started without one."""
    if file is not None:
        return file
    return STDERR if sys.stderr is not None else Path(os.devnull)


def _tracing() -> Tracing | None:
    """None too where the environment asks for what is not there: clusters set its variables for everybody."""
    try:
        return Tracing.configured()
    except MetastableError as error:
        log.warning("no traces are sent: %s", error)
        return None
