"""The launcher: what it refuses, and whole lives of a server with a tiny model."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy import serve
from deploy.run_folder import Refused
from tests.launched import PATIENCE, REPOSITORY, free_port, launched

# --- what is refused ---------------------------------------------------------------------------


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert serve.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1  # one line
    return message


def test_a_missing_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = run_main(capsys, "--archive", str(tmp_path / "metastable.mar"))
    assert "metastable.mar is missing: run `make archive`" in message


def test_a_taken_port_is_refused_with_its_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "metastable.mar"
    archive.touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ports = ["--port", str(free_port()), "--metrics-port", port]
        message = run_main(capsys, "--archive", str(archive), *ports)
    assert f"port {port} on 127.0.0.1 is taken: choose another with --metrics-port" in message


def test_one_port_for_two_purposes_is_refused() -> None:
    port = free_port()
    with pytest.raises(Refused, match=f"--port and --metrics-port are both {port}"):
        serve.check_ports([("--port", "127.0.0.1", port), ("--metrics-port", "127.0.0.1", port)])


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_an_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(Refused, match="--port must be a port from 1 to 65535"):
        serve.check_ports([("--port", "127.0.0.1", port)])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4"])
def test_a_reachable_host_needs_allow_remote(host: str) -> None:
    with pytest.raises(Refused, match="--allow-remote"):
        serve.check_host(host, allow_remote=False)
    assert serve.check_host(host, allow_remote=True) == host


def test_only_an_ipv4_address_is_a_host() -> None:
    assert serve.check_host("localhost", allow_remote=False) == "127.0.0.1"
    for wrong in ("", "::1", "example.org", "127.0.0.1\nload_models=all"):
        with pytest.raises(Refused, match="IPv4"):
            serve.check_host(wrong, allow_remote=True)


@pytest.mark.parametrize("name", ["a,b.mar", "a b.mar", "a=b.mar", "model.zip"])
def test_a_name_that_torchserve_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(Refused, match=re.escape(name)):
        serve.check_archive(tmp_path / name)


# --- whole lives -------------------------------------------------------------------------------

HANDLER = """
import json
import os

from metastable.serving.metrics import Metrics

class Tiny:
    def initialize(self, context):
        {initialize}
        self.metrics = Metrics(settings=["none"])
        self.metrics.serve(int(os.environ["METASTABLE_METRICS_PORT"]))

    def handle(self, data, context):
        self.metrics.request("none", "ok", 0.001)
        context.set_response_content_type(0, "application/json")
        names = [name for name in os.environ if name.startswith("METASTABLE_")]
        return [json.dumps({{"bytes": len(data[0]["body"]), "names": names}})]
"""

MODEL_CONFIG = """
minWorkers: 2
maxWorkers: 2
batchSize: 1
maxBatchDelay: 1
responseTimeout: 120
"""


def build_archive(folder: Path, initialize: str = "pass") -> Path:
    """A .mar with a tiny handler that runs `initialize` first."""
    (folder / "packing").mkdir()
    serving = ("serving/metrics.py", "serving/exposition.py")
    for name in (f"metastable/{file}" for file in (*serving, "errors.py", "version.py")):  # what it imports
        copy = folder / "extra" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, copy)
        (copy.parent / "__init__.py").touch()
    (folder / "tiny.py").write_text(HANDLER.format(initialize=initialize))
    (folder / "model-config.yaml").write_text(MODEL_CONFIG)
    command = [str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", "metastable"]
    command += ["--version", "1", "--handler", "tiny.py", "--config-file", "model-config.yaml"]
    command += ["--extra-files", "extra"]
    # The archiver empties a folder in TMPDIR: it gets one of its own.
    environment = os.environ | {"TMPDIR": str(folder / "packing")}
    subprocess.run(command, check=True, cwd=folder, env=environment, timeout=PATIENCE)
    return folder / "metastable.mar"


def by_the_printed_curl_line(output: str) -> httpx.Response:
    """Do with httpx what the `try it` line does with curl."""
    line = next(line for line in output.splitlines() if "try it:" in line)
    words = shlex.split(line.split("try it:")[1])
    name, value = words[words.index("-H") + 1].split(": ")
    file = Path(words[words.index("--data-binary") + 1].removeprefix("@"))
    return httpx.post(
        words[-1], content=file.read_bytes(), headers={name: value}, trust_env=False, timeout=PATIENCE
    )


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_a_server_starts_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with launched(tmp_path, build_archive(tmp_path)) as server:
        output = server.until_ready()
        assert len(server.started) >= 4  # guard, JVM, two workers
        answer = by_the_printed_curl_line(output)
        assert answer.status_code == 200
        assert answer.json()["bytes"] == (server.run_folder / "sample.png").stat().st_size
        assert answer.json()["names"] == ["METASTABLE_METRICS_PORT", "METASTABLE_RUNNER_CACHE"]  # no secret

        metrics = httpx.get(f"http://127.0.0.1:{server.ports[1]}/metrics", trust_env=False).text
        assert 'metastable_requests_total{arm="",outcome="ok",setting="none"} 2.0' in metrics  # probe, curl

        scratch = server.scratch()
        assert (scratch / "management.sock").stat().st_mode & 0o077 == 0
        server.process.send_signal(signal.SIGTERM)
        status, rest = server.finish()
        assert status == 0
        assert "nothing is left running" in rest
        assert server.alive() == []
        assert not scratch.exists()
        assert not (server.run_folder / "metrics").exists()
        serve.check_ports([("--port", "127.0.0.1", port) for port in server.ports])  # all free again


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_check_predicts_once_and_ends(tmp_path: Path) -> None:
    with launched(tmp_path, build_archive(tmp_path), "--check") as server:
        status, output = server.finish()
    assert status == 0
    assert 'check: predicted {"bytes":' in output


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_a_model_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    archive = build_archive(tmp_path, initialize='raise ValueError("the weights are damaged")')
    with launched(tmp_path, archive) as server:
        status, output = server.finish()
    assert status == 1
    assert "error: the model cannot be loaded" in output
    assert "ValueError: the weights are damaged" in output


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_a_server_that_dies_is_reported_and_cleared_away(tmp_path: Path) -> None:
    with launched(tmp_path, build_archive(tmp_path)) as server:
        server.until_ready()
        jvm = next(process for process in server.started if "java" in process.name())
        jvm.kill()
        status, output = server.finish()
        assert status == 1
        assert "error: the server ended by itself" in output
        assert server.alive() == []


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_a_killed_launcher_takes_the_server_with_it(tmp_path: Path) -> None:
    with launched(tmp_path, build_archive(tmp_path)) as server:
        server.until_ready()
        server.process.kill()
        server.finish()
        assert server.alive() == []
