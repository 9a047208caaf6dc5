"""TorchServe as one process group that can be stopped as a whole.

TorchServe's own launcher ends at SIGTERM and leaves the JVM and its workers running, so here it
is not the one that is asked to stop. It runs inside a guard, the leader of a new session:

    launcher --pipe--> guard (this file as a program) -> JVM -> workers

The guard lets SIGTERM pass (the JVM obeys it) and ends with the JVM. When the launcher dies in
any way, even by SIGKILL, the pipe closes and the guard kills the group and itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped]

TERM_SECONDS = 20.0
KILL_SECONDS = 10.0


class ServerGroup:
    """A running TorchServe; `arguments` are those of the `torchserve` command."""

    def __init__(
        self, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], console: Path
    ) -> None:
        reading, self._pipe = os.pipe()
        try:
            with console.open("ab") as output:
                self._guard = subprocess.Popen(
                    [sys.executable, "-P", __file__, str(reading), *arguments],
                    cwd=folder,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[reading],
                    start_new_session=True,
                    umask=0o077,  # logs, keys and the management socket are for the owner alone
                )
        finally:
            os.close(reading)
        self.pgid = self._guard.pid

    def running(self) -> bool:
        """Whether the JVM is still there (the guard ends with it)."""
        return self._guard.poll() is None

    def members(self) -> list[int]:
        """The processes of the group that are alive. A zombie is not: its parent has yet to notice."""
        found = []
        for process in psutil.process_iter(["status"]):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(process.pid) == self.pgid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def stop(self, at_once: Callable[[], bool] = lambda: False) -> list[int]:
        """TERM, wait, KILL; returns the processes that survived even that (none).

        It kills without waiting longer as soon as `at_once()` says so.
        """
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + TERM_SECONDS
        while self.running() and time.monotonic() < deadline and not at_once():
            time.sleep(0.05)
        # The JVM is gone or refuses to go. Workers have nothing to save: TERM was enough warning.
        deadline = time.monotonic() + KILL_SECONDS
        while (left := self.members()) and time.monotonic() < deadline:
            self._signal(signal.SIGKILL)
            self.running()
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(KILL_SECONDS)  # a guard that is a zombie is no member, yet wants reaping
        os.close(self._pipe)
        return left

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pgid, number)


def _guard(pipe: int, arguments: list[str]) -> None:
    """Run TorchServe's launcher in this process until the JVM ends."""

    def wait_for_launcher() -> None:
        os.read(pipe, 1)  # nothing is ever written: this returns when the launcher is gone
        os.killpg(0, signal.SIGKILL)

    told = threading.Event()

    def pass_by(number: int, frame: FrameType | None) -> None:
        """Stay until the JVM, which gets the same signal, has gone."""
        told.set()

    # A handler and not SIG_IGN: the JVM would inherit that and never hear the signal.
    signal.signal(signal.SIGTERM, pass_by)
    threading.Thread(target=wait_for_launcher, daemon=True).start()
    from ts.model_server import start

    if told.is_set():  # nobody would tell the JVM again
        return
    sys.argv = ["torchserve", *arguments]
    start()


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2:])
