"""A server started through its launcher, for tests."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[1]
PATIENCE = 300  # seconds; a busy machine is slow, a hanging server hangs for ever
allowed = True
"""Whether the test that runs is marked `server`; tests/conftest.py sets it."""


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


class Launched:
    """The launcher as a subprocess on free ports, its output read as it comes."""

    def __init__(self, folder: Path, archive: Path, *extra: str) -> None:
        assert allowed, "this test starts a server: mark it `server`"
        self.run_folder = folder / "run"
        shadow = folder / "shadow" / "handlers"  # must not be what the worker imports
        shadow.mkdir(parents=True)
        (shadow / "__init__.py").write_text("raise ImportError('not from the archive')")
        self.ports = [free_port() for _ in range(3)]
        flags = ("--port", "--metrics-port", "--torchserve-metrics-port")
        command = [sys.executable, "-m", "deploy.serve", "--archive", str(archive), *extra]
        command += ["--run-dir", str(self.run_folder), "--ready-timeout", str(PATIENCE)]
        for flag, port in zip(flags, self.ports, strict=True):
            command += [flag, str(port)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("METASTABLE_")}
        environment |= {"METASTABLE_SECRET": "x", "PYTHONPATH": str(folder / "shadow")}
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, **both)
        self.started: list[psutil.Process] = []
        self._killer = threading.Timer(2 * PATIENCE, self.process.kill)
        self._killer.start()

    def until_ready(self) -> str:
        """The output up to the last line that a ready server prints."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.strip().startswith("stop:"):
                self.started = psutil.Process(self.process.pid).children(recursive=True)
                return "".join(lines)
        pytest.fail("the launcher ended early:\n" + "".join(lines))

    def finish(self) -> tuple[int, str]:
        """The exit status and the rest of the output."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output

    def alive(self) -> list[psutil.Process]:
        _, alive = psutil.wait_procs(self.started, timeout=30)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def scratch(self) -> Path:
        config = (self.run_folder / "config.properties").read_text()
        found = re.search(r"^management_address=unix:(.*)/", config, re.MULTILINE)
        assert found is not None
        return Path(found[1])

    def close(self) -> None:
        self._killer.cancel()
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def launched(folder: Path, archive: Path, *extra: str) -> Iterator[Launched]:
    one = Launched(folder, archive, *extra)
    try:
        yield one
    finally:
        one.close()
