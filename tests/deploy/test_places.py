"""Where a server may have to live: nobody may write the checkout, the disk is full, the clock jumps.

That needs mounts of one's own, in a user namespace: what a machine forbids is skipped there.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import psutil
import pytest

from export import mar
from tests.launched import PATIENCE, REPOSITORY, free_port
from tests.serving.door.conftest import png

FAKETIME = sorted(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1"))
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return tried.returncode == 0


pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(4 * PATIENCE),
    pytest.mark.skipif(not _can_mount(), reason="no mounts of one's own here"),
]


@pytest.fixture(scope="module")
def archive(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("places") / "with spaces" / "tiny.mar"
    path.parent.mkdir()
    mar.build(tiny_folder, REPOSITORY / "model-config.yaml", path)
    return path


def of_torchserve(archive: Path, run: Path) -> list[str]:
    port = str(free_port())
    return ["--archive", str(archive), "--run-dir", str(run), "--torchserve-metrics-port", port]


@contextlib.contextmanager
def server(script: str, words: list[str], folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server, started by a script in a namespace of its own; it is stopped by SIGTERM, with status 0."""
    port = free_port()
    command = [sys.executable, "-m", "deploy.serve", "--port", str(port), "--metrics-port", str(free_port())]
    (folder / "script").write_text(script + '\nexec "$@"\n')
    with subprocess.Popen(
        [*NAMESPACE, "sh", "-e", str(folder / "script"), *command, *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as one:
        assert one.stdout is not None
        said = []
        try:
            for line in one.stdout:
                said.append(line)
                if line.strip().startswith("stop:"):
                    break
            else:
                pytest.fail("".join(said))
            yield f"http://127.0.0.1:{port}", one
            one.send_signal(signal.SIGTERM)
            one.communicate(timeout=PATIENCE)
            assert one.returncode == 0
        finally:
            one.kill()


@pytest.mark.parametrize("engine", ["local", "torchserve"])
def test_a_checkout_that_nobody_may_write(
    engine: str, archive: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    # The inner namespace has no privileges, and a user that is not root.
    here = shlex.quote(str(REPOSITORY))
    read_only = f"mount --bind {here} {here}\nmount -o remount,bind,ro {here}\n"
    script = f'{read_only}cd {here}\n! touch new 2> /dev/null\nset -- unshare --user "$@"'
    words = {
        "local": ["--engine", "local", "--bundle", str(tiny_folder)],
        "torchserve": of_torchserve(archive, tmp_path / "a run folder"),
    }[engine]
    with server(script, words, tmp_path) as (url, process):
        uids = Path(f"/proc/{process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in uids
        answer = httpx.post(f"{url}/classify", content=png(), trust_env=False, timeout=PATIENCE)
        assert answer.status_code == 200


def test_a_disk_that_is_full_for_torchserves_logs(archive: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    (run / "lock").touch()
    inside = shlex.quote(f"{run}/logs")
    small = f"mkdir {inside}\nmount -t tmpfs -o size=64k,mode=700 none {inside}\n"
    with server(small, of_torchserve(archive, run), tmp_path) as (url, process):
        logs = Path(f"/proc/{process.pid}/root/{run}/logs")
        with (logs / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(512))
        assert shutil.disk_usage(logs).free == 0
        ask = {"content": png(), "trust_env": False, "timeout": PATIENCE}
        for _ in range(20):
            assert httpx.post(f"{url}/classify", **ask).status_code == 200  # type: ignore[arg-type]
        jvm = next(
            one for one in psutil.Process(process.pid).children(recursive=True) if one.name() == "java"
        )
        jvm.kill()
        for status in (503, 200):  # and it can be started again
            while httpx.get(f"{url}/readyz", trust_env=False).status_code != status:
                time.sleep(0.1)
        assert httpx.post(f"{url}/classify", **ask).status_code == 200  # type: ignore[arg-type]
    assert os.listdir(run / "logs") == []  # they were never on this disk


@pytest.mark.skipif(not FAKETIME, reason="no libfaketime here")
@pytest.mark.parametrize("days", ["+400d", "-400d"])
def test_a_clock_that_jumps(days: str, tiny_folder: Path, tmp_path: Path) -> None:
    # Of the door and the engine: a JVM does not start under libfaketime.
    clock = tmp_path / "clock"
    clock.write_text("+0d")
    names = {
        "LD_PRELOAD": FAKETIME[0],
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    script = "".join(f"export {name}={value}\n" for name, value in names.items())
    with server(script, ["--engine", "local", "--bundle", str(tiny_folder)], tmp_path) as (url, _):
        ask = {"content": png(), "trust_env": False, "timeout": PATIENCE}
        before = httpx.post(f"{url}/classify", **ask)  # type: ignore[arg-type]
        clock.write_text(days)
        after = [httpx.post(f"{url}/classify", **ask) for _ in range(5)]  # type: ignore[arg-type]
        assert [one.status_code for one in (before, *after)] == 6 * [200]
        # The jump is true: the server's own dates say so.
        dates = [parsedate_to_datetime(one.headers["date"]) for one in (before, after[-1])]
        assert abs((dates[1] - dates[0]).days) >= 399
        headers = {"X-Metastable-Deadline-Ms": "60000"}
        assert httpx.post(f"{url}/classify", headers=headers, **ask).status_code == 200  # type: ignore[arg-type]
