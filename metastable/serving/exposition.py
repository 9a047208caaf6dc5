"""How metrics are shown: one address, whatever the number of processes that count.

With PROMETHEUS_MULTIPROC_DIR in the environment each process writes its numbers to files in that folder, and
whichever got the port sums the files of all.  The variable must be there before prometheus_client is first
imported, and whoever starts the server empties the folder, because the files of earlier processes would be
counted again (`deploy.run_folder` does).  What a process has counted that died meanwhile is kept; its gauges
are dropped: its backlog has gone with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_RETRY_SECONDS = 5.0


def multiprocess() -> bool:
    """Whether this process shares its metrics with others."""
    return FOLDER in os.environ


def of_all() -> CollectorRegistry:
    """What all processes have counted, summed whenever it is read."""
    everyone = CollectorRegistry()
    everyone.register(_Living(Path(os.environ[FOLDER])))
    return everyone


def serve(registry: CollectorRegistry, port: int, host: str) -> None:
    """Offer a registry over HTTP, from whichever process of this machine gets the port.

    Never raises and never waits: a server without metrics still answers requests.
    """
    if _listen(port, host, registry):
        return
    log.info("port %d is not free: metrics are not served from this process", port)
    if multiprocess():
        # Stand by: when the process that has the port dies, one of the others takes over.
        threading.Thread(target=_stand_by, args=(port, host, registry), daemon=True).start()


class _Living(Collector):
    """The numbers of all processes, without gauges of those that are dead."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sums = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        for pid in {path.stem.rpartition("_")[2] for path in self._folder.glob("gauge_live*_*.db")}:
            if not _alive(int(pid)):
                with contextlib.suppress(FileNotFoundError):  # another reader was first
                    mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
        found: Iterable[Metric] = self._sums.collect()  # type: ignore[no-untyped-call]
        return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _listen(port: int, host: str, registry: CollectorRegistry) -> bool:
    try:
        start_http_server(port, host, registry)
    except (OSError, OverflowError):  # taken, not allowed, or no port at all
        return False
    return True


def _stand_by(port: int, host: str, registry: CollectorRegistry) -> None:
    while True:
        time.sleep(_RETRY_SECONDS)
        if _listen(port, host, registry):
            return
