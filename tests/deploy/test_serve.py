"""The launcher: what it refuses, and whole lives of a server with a tiny model."""

import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from deploy import serve
from deploy.run_folder import Refused
from export import mar
from tests.launched import PATIENCE, REPOSITORY, Launched, free_port, launched

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


@pytest.mark.parametrize("name", ["a,b.mar", "a b.mar", "a=b.mar", "model.zip"])
def test_a_name_that_torchserve_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(Refused, match=re.escape(name)):
        serve.check_archive(tmp_path / name)


def refused(*arguments: str) -> str:
    """In a process of its own, which makes prometheus_client one of several."""
    command = [sys.executable, "-m", "deploy.serve", *arguments, *ports_of(3)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_several_workers_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    archive = packed(tiny_folder, tmp_path, "maxWorkers: 1", "maxWorkers: 2")
    message = refused("--archive", str(archive), "--run-dir", str(tmp_path / "run"))
    assert "wants several workers: make minWorkers and maxWorkers 1" in message
    assert not (tmp_path / "run" / "tmp").exists()


def test_other_machines_need_keys(tiny_archive: Path, tmp_path: Path) -> None:
    where = ["--archive", str(tiny_archive), "--run-dir", str(tmp_path / "run"), "--host", "0.0.0.0"]
    assert "name a file of keys with --keys" in refused(*where)


# --- whole lives -------------------------------------------------------------------------------


def ports_of(count: int) -> list[str]:
    flags = ("--port", "--metrics-port", "--torchserve-metrics-port")[:count]
    return [word for flag in flags for word in (flag, str(free_port()))]


@pytest.fixture(scope="module")
def tiny_archive(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tiny_folder, tmp_path_factory.mktemp("packed"))


def packed(bundle: Path, folder: Path, *change: str) -> Path:
    """An archive of a bundle, with `change` (old, new) made in its configuration."""
    config, archive = folder / "model-config.yaml", folder / "metastable.mar"
    text = (REPOSITORY / "model-config.yaml").read_text()
    if change:
        assert change[0] in text
        text = text.replace(*change)
    config.write_text(text)
    mar.build(bundle, config, archive)
    return archive


def by_the_printed_curl_line(output: str, *, key: str = "wrong") -> httpx.Response:
    """Do with httpx what the `try it` line does with curl, whose content type is that of a form."""
    line = next(line for line in output.splitlines() if "try it:" in line)
    words = shlex.split(line.split("try it:")[1])
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    if "-H" in words:
        name, value = words[words.index("-H") + 1].replace("KEY", key).split(": ")
        headers[name] = value
    file = Path(words[words.index("--data-binary") + 1].removeprefix("@"))
    return httpx.post(
        words[-1], content=file.read_bytes(), headers=headers, trust_env=False, timeout=PATIENCE
    )


def until(seen: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_a_server_starts_answers_and_leaves_nothing_behind(tiny_archive: Path, tmp_path: Path) -> None:
    keys, key = tmp_path / "keys", "k" * 40
    keys.write_text(f"me:{key}\n")
    keys.chmod(0o600)
    policy = tmp_path / "policy.yaml"
    arm = "split: {arms: {only: {setting: fast, weight: 1}}}"
    policy.write_text(f"{arm}\nshadow: {{setting: none, share: 1, waiting: 4}}")
    with launched(tmp_path, tiny_archive, "--keys", str(keys), "--policy", str(policy)) as server:
        url = f"http://127.0.0.1:{server.ports[0]}"
        # It answers before anything stands behind it.
        until(lambda: reachable(url))
        output = server.until_ready()
        assert len(server.started) >= 3  # guard, JVM, worker
        assert by_the_printed_curl_line(output).status_code == 401
        answer = by_the_printed_curl_line(output, key=key)
        assert answer.status_code == 200
        assert answer.json()["model"]["name"] == "tiny"
        assert (answer.json()["arm"], answer.json()["setting"]) == ("only", "fast")

        def metric(pattern: str) -> bool:
            metrics = httpx.get(f"http://127.0.0.1:{server.ports[1]}/metrics", trust_env=False).text
            return re.search(f"^metastable_{pattern}$", metrics, re.M) is not None

        until(lambda: metric(r"shadow_total{.*outcome=\"compared\".*} 1.0"))
        assert metric(r"requests_total{.*arm=\"only\".*outcome=\"ok\".*} 1.0")
        assert metric(r"chains_count{setting=\"fast\"} 1.0")  # which the worker counts
        assert not metric(r"chains_count{setting=\"none\"} [1-9].*")  # no client asked for it
        policy.write_text(arm.replace("fast", "none"))
        assert f"read again at kill -HUP {server.process.pid}" in output
        server.process.send_signal(signal.SIGHUP)
        until(lambda: by_the_printed_curl_line(output, key=key).json()["setting"] == "none")

        names = worker_of(server).environ()
        assert "METASTABLE_SECRET" not in names
        scratch = server.scratch()
        for name in ("management.sock", "inference.sock"):
            assert (scratch / name).stat().st_mode & 0o077 == 0
        past_the_door = httpx.HTTPTransport(uds=str(scratch / "inference.sock"))
        with httpx.Client(transport=past_the_door, timeout=PATIENCE) as client:
            answer = client.post("http://torchserve/predictions/metastable", content=b"")
        assert answer.status_code in (400, 401, 403), answer.text  # TorchServe asks for its key
        assert "Token Authorization failed" in answer.text
        assert (server.run_folder / "key_file.json").stat().st_mode & 0o077 == 0
        assert listening(server) == {server.ports[2], *others(server)}
        server.process.send_signal(signal.SIGTERM)
        status, rest = server.finish()
        assert status == 0
        assert "stopping" in rest
        assert "nothing is left running" in rest
        assert server.alive() == []
        assert not scratch.exists()
        assert not (server.run_folder / "metrics").exists()
        assert not (server.run_folder / "key_file.json").exists()
        serve.check_ports([("--port", "127.0.0.1", port) for port in server.ports])  # all free again


def reachable(url: str) -> bool:
    """Whether it lives; then it says that it is not ready, and a client when to come again."""
    try:
        alive = httpx.get(f"{url}/livez", trust_env=False)
    except httpx.ConnectError:
        return False
    assert alive.status_code == 200
    refused = httpx.get(f"{url}/readyz", trust_env=False)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    return True


def worker_of(server: Launched) -> psutil.Process:
    [worker] = [one for one in server.started if "model_service_worker" in " ".join(one.cmdline())]
    return worker


def listening(server: Launched) -> set[int]:
    """TCP ports of TorchServe's processes that anybody on this machine reaches."""
    return {
        one.laddr.port
        for process in server.started
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }


def others(server: Launched) -> set[int]:
    """Those of gRPC, which cannot be turned off; of which nobody is told the numbers."""
    return {port for port in listening(server) if port > 30000 and port not in server.ports[:2]}


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_check_predicts_once_and_ends(tiny_archive: Path, tmp_path: Path) -> None:
    with launched(tmp_path, tiny_archive, "--check") as server:
        status, output = server.finish()
    assert status == 0, output
    assert 'check: 200 {"label":' in output


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_a_model_that_cannot_be_loaded_is_reported(tiny_archive: Path, tmp_path: Path) -> None:
    archive = tmp_path / "broken.mar"
    with zipfile.ZipFile(tiny_archive) as good, zipfile.ZipFile(archive, "w") as bad:
        for name in good.namelist():  # it wants a runner, and lacks what that runs
            bad.writestr(name, good.read(name).replace(b"runner: auto", b"runner: openvino-int8"))
    with launched(tmp_path, archive) as server:
        status, output = server.finish()
    assert status == 1
    assert "error: the model cannot be loaded" in output
    assert "openvino-int8" in output.partition("error: the model cannot be loaded")[2]


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_a_server_that_dies_is_started_again(tiny_archive: Path, tmp_path: Path) -> None:
    with launched(tmp_path, tiny_archive) as server:
        output = server.until_ready()
        url = f"http://127.0.0.1:{server.ports[0]}"
        jvm = next(process for process in server.started if "java" in process.name())
        jvm.kill()
        until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 503)
        assert server.process.poll() is None
        until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 200)
        assert by_the_printed_curl_line(output).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        status, rest = server.finish()
        assert status == 0
        assert "TorchServe ended by itself: starting it again in 1 s" in rest
        assert server.alive() == []


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_a_killed_launcher_takes_the_server_with_it(tiny_archive: Path, tmp_path: Path) -> None:
    with launched(tmp_path, tiny_archive) as server:
        server.until_ready()
        server.process.kill()
        server.finish()
        assert server.alive() == []


@pytest.mark.server
@pytest.mark.timeout(4 * PATIENCE)
def test_two_servers_on_one_machine_leave_each_other_alone(tiny_archive: Path, tmp_path: Path) -> None:
    with launched(tmp_path / "one", tiny_archive) as one, launched(tmp_path / "two", tiny_archive) as two:
        said = [server.until_ready() for server in (one, two)]
        assert [by_the_printed_curl_line(output).status_code for output in said] == [200, 200]
        one.process.send_signal(signal.SIGTERM)
        assert one.finish()[0] == 0
        assert by_the_printed_curl_line(said[1]).status_code == 200
        two.process.send_signal(signal.SIGTERM)
        assert two.finish()[0] == 0
