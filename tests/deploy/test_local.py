"""The door with an engine in its process: what is refused, and whole lives."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deploy import serve
from export import mar
from tests import launched
from tests.launched import PATIENCE, REPOSITORY, free_port
from tests.serving.door.conftest import png


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    ports = ["--port", str(free_port()), "--metrics-port", str(free_port())]
    assert serve.main([*arguments, *ports]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_options_of_this_engine_are_refused_beside_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--bundle does nothing with --engine torchserve" in refused(capsys, "--bundle", "cifar10")
    assert "--allow-seeds does nothing with --engine torchserve" in refused(capsys, "--allow-seeds")


def test_options_of_torchserve_are_refused_beside_this_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = ["--engine", "local", "--bundle", "cifar10"]
    for idle in (["--torchserve-metrics-port", "1"], ["--run-dir", "x"], ["--ready-timeout", "3"]):
        assert f"{idle[0]} does nothing with --engine local" in refused(capsys, *local, *idle)
    assert "--archive does nothing with --bundle" in refused(capsys, *local, "--archive", "x.mar")
    missing = str(tmp_path / "no.png")
    assert "no.png is missing: name an image" in refused(capsys, *local, "--sample", missing)
    assert "max_pixels must be" in refused(capsys, *local, "--max-pixels", "0")


def test_other_machines_need_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = ["--engine", "local", "--bundle", "cifar10"]
    assert "name a file of keys with --keys" in refused(capsys, *local, "--host", "0.0.0.0")
    keys = tmp_path / "keys"
    keys.write_text("me:short\n")
    keys.chmod(0o600)
    assert "keys" in refused(capsys, *local, "--host", "0.0.0.0", "--keys", str(keys))


def test_what_cannot_be_served_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = ["--engine", "local"]
    assert "missing" in refused(capsys, *local, "--archive", str(tmp_path / "no.mar"))
    broken = tmp_path / "broken.mar"
    broken.write_bytes(b"no archive")
    assert "is no archive" in refused(capsys, *local, "--archive", str(broken))
    assert "runner" in refused(capsys, *local, "--bundle", str(tiny_folder), "--runner", "x")


@contextmanager
def started(*arguments: str, cwd: Path = REPOSITORY) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process, and its address."""
    assert launched.allowed
    port = free_port()
    command = [sys.executable, "-m", "deploy.serve", "--engine", "local", "--port", str(port)]
    command += ["--metrics-port", str(free_port()), *arguments]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=cwd, env=environment, text=True, **both)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """Its output up to the last line of a ready server."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.strip().startswith("stop:"):
            return "".join(lines)
    pytest.fail("it ended early:\n" + "".join(lines))


@pytest.mark.server
@pytest.mark.parametrize("ask", [signal.SIGTERM, signal.SIGINT])
def test_a_bundle_is_served_until_a_signal(ask: signal.Signals, tiny_folder: Path) -> None:
    arguments = ["--bundle", str(tiny_folder), "--runner", "torch", "--threads", "1"]
    with started(*arguments, "--metrics-host", "127.0.0.3") as (process, url):
        output = said(process)
        assert f"{url}/classify" in output
        [metrics] = re.findall(r"http://127\.0\.0\.3:\d+/metrics", output)
        assert "metastable_model_info" in httpx.get(metrics, trust_env=False, timeout=PATIENCE).text
        answer = httpx.post(url + "/classify", content=png(), trust_env=False, timeout=PATIENCE)
        assert answer.json()["model"]["name"] == "tiny"
        process.send_signal(ask)
        rest, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, rest
        [logged] = [line for line in rest.splitlines() if " info request " in line]
        assert " route=/classify status=200 " in logged
        assert [line for line in rest.splitlines() if line != logged] == ["stopping", "stopped"]


@pytest.mark.server
def test_an_archive_is_checked_behind_a_key(tiny_folder: Path, tmp_path: Path) -> None:
    archive, keys = tmp_path / "tiny.mar", tmp_path / "keys"
    mar.build(tiny_folder, REPOSITORY / "model-config.yaml", archive)
    key = "k" * 40
    keys.write_text(f"me:{key}\n")
    keys.chmod(0o600)
    with started("--archive", str(archive), "--threads", "1", "--keys", str(keys)) as (process, url):
        said(process)
        assert httpx.post(url + "/classify", content=png(), trust_env=False).status_code == 401
        known = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(
            url + "/classify", content=png(), headers=known, trust_env=False, timeout=PATIENCE
        )
        assert answer.status_code == 200
    # From a folder that is no checkout.
    with started("--archive", str(archive), "--threads", "1", "--check", cwd=tmp_path) as (process, _):
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out
        assert "check: 200" in out
