"""A stop in the first second of `metastable serve`: while it is imported, and while the server starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from export import mar
from tests.launched import PATIENCE, REPOSITORY, free_port


@pytest.fixture(scope="module")
def archive(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("early") / "tiny.mar"
    mar.build(tiny_folder, REPOSITORY / "model-config.yaml", path)
    return path


@pytest.fixture
def command(archive: Path, tmp_path: Path) -> Iterator[list[str]]:
    """A server; nothing of it may be left at the end."""
    place = str(tmp_path / "run")
    words = [sys.executable, "-X", "importtime", "-m", "metastable", "serve", "--archive", str(archive)]
    for flag in ("--port", "--metrics-port", "--torchserve-metrics-port"):
        words += [flag, str(free_port())]
    yield [*words, "--run-dir", place]
    assert [one for one in psutil.process_iter() if place in _words(one)] == []


def _words(process: psutil.Process) -> str:
    """Its command line, its folder and where its output goes."""
    try:
        return " ".join([*process.cmdline(), process.cwd(), *process.environ().values()])
    except psutil.Error:
        return ""


def stopped(command: list[str], number: int, sign: str) -> tuple[int, str]:
    """Exit status, and what was said after a line with `sign` in it, when the signal was sent."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(
        command, cwd=REPOSITORY, **pipes, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as one:
        assert one.stdout is not None
        for line in one.stdout:
            if sign in line:
                break
        else:
            pytest.fail(f"it ended before {sign}")
        one.send_signal(number)
        said = one.communicate(timeout=PATIENCE)[0]
    lines = [line for line in said.splitlines() if not line.startswith("import time:")]
    return one.returncode, "\n".join(lines)


@pytest.mark.parametrize("module", ["metastable.errors", "metastable.console", "httpx", "torch"])
@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "\nstopped"), (signal.SIGTERM, -signal.SIGTERM, "")]
)
def test_while_it_is_imported(command: list[str], module: str, number: int, status: int, said: str) -> None:
    if module in ("httpx", "torch") and number == signal.SIGTERM:
        status = 128 + number  # by then there is a folder to clear away
    found = stopped(command, number, f" {module}\n")
    assert found == (status, said)


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_the_server_starts(command: list[str], number: int) -> None:
    status, said = stopped(command, number, "starting TorchServe with Java")
    assert status == 0
    assert "Traceback" not in said
    assert "nothing is left running" in said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_while_java_is_looked_for(
    command: list[str], number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin" / "java"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nsleep 0.5\necho looking > /proc/$PPID/fd/1\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MARK", command[-1])
    monkeypatch.delenv("JAVA_HOME", raising=False)
    found = stopped(command, number, "looking")
    assert found == (status, "\nstopped" if number == signal.SIGINT else "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_for_the_log_does_not_end_what_has_none_yet(command: list[str], number: int) -> None:
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as one:
        assert one.stderr is not None
        imported = (line.split("|")[-1].strip() for line in one.stderr)
        assert "torch" in imported  # reads on to there
        one.send_signal(number)
        assert "httpx" in imported
        one.send_signal(signal.SIGTERM)
        one.communicate(timeout=PATIENCE)
    assert one.returncode == 128 + signal.SIGTERM
