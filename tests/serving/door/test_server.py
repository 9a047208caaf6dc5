"""Starting, draining and ending, with real signals to a real process where that matters."""

import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from metastable.errors import SettingsError
from metastable.serving.door import server, sockets
from metastable.serving.door.limits import Limits
from metastable.serving.door.stopping import Stop
from tests.serving.door.served import PATIENCE, Client, request, serving

PROGRAM = """
import sys
from metastable.serving.door import server
from metastable.serving.door.stopping import Stop
from tests.serving.door.served import Small
stop = Stop()
app = Small(stop)
ready = lambda url: print(url.rpartition(":")[2], flush=True)
status = server.run(app, stop=stop, port=0, on_ready=ready, grace_seconds=0.3, drain_seconds=20)
print("ended", app.ended, flush=True)
sys.exit(status)
"""


@pytest.fixture
def process(root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=root, text=True, **pipes) as started:
        yield started
        started.kill()


def reach(process: subprocess.Popen[str]) -> Client:
    assert process.stdout is not None
    return Client(("127.0.0.1", int(process.stdout.readline())))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_answers_finish_and_the_status_is_0(
    process: subprocess.Popen[str], number: signal.Signals
) -> None:
    with reach(process) as client:
        client.send(request("POST", "/echo", "Content-Length: 2"))
        with Client(client.socket.getpeername()) as other:
            assert other.get("/readyz").status == 200
            process.send_signal(number)
            while other.get("/readyz").status == 200:
                pass
        client.send(b"ab")
        answer = client.answer()
        assert (answer.status, answer.json["bytes"], answer.fields["connection"]) == (200, 2, "close")
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, "ended True\n", "")


@pytest.mark.slow
def test_a_second_signal_ends_at_once(process: subprocess.Popen[str]) -> None:
    with reach(process) as client:
        client.send(request("GET", "/wait"))
        with Client(client.socket.getpeername()) as other:
            process.send_signal(signal.SIGTERM)
            while other.get("/readyz").status == 200:
                pass
            process.send_signal(signal.SIGTERM)
        assert client.answer().code == "draining"
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, "ended True\n", "")


def test_while_it_drains_only_its_health_is_told() -> None:
    with serving(grace_seconds=PATIENCE, drain_seconds=PATIENCE) as served:
        with served.client() as kept, served.client() as late:
            assert kept.get("/readyz").status == 200
            served.stop.ask()
            for client, path in ((kept, "/echo"), (late, "/echo")):
                answer = client.get(path)
                assert (answer.status, answer.code) == (503, "draining")
                assert answer.fields["connection"] == "close"
                assert int(answer.fields["retry-after"]) >= 1
                assert client.rest() == b""
        for path, status in (("/livez", 200), ("/readyz", 503)):
            with served.client() as client:
                assert client.get(path).status == status


def test_what_lasts_longer_than_the_drain_is_cut_off_with_an_answer() -> None:
    with serving(grace_seconds=0.1, drain_seconds=0.3) as served, served.client() as client:
        client.send(request("GET", "/wait"))
        assert served.app.entered.acquire(timeout=PATIENCE)
        served.stop.ask()
        assert client.answer().code == "draining"
        assert served.finish() == 0
        assert served.app.ended


def test_idle_connections_keep_nothing_from_ending() -> None:
    with serving(grace_seconds=0.1) as served, served.client() as idle, served.client() as begun:
        idle.get("/livez")
        begun.send(b"GET /li")
        served.lives()
        served.stop.ask()
        assert served.finish() == 0
        assert idle.rest() == b""


def test_a_stop_before_the_application_has_started() -> None:
    entered, stop = threading.Event(), Stop()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await receive()
        await receive()

    ready: list[str] = []
    status: list[int] = []
    arguments = {"stop": stop, "port": 0, "on_ready": ready.append}
    thread = threading.Thread(target=lambda: status.append(server.run(slow, **arguments)))  # type: ignore[arg-type]
    thread.start()
    assert entered.wait(PATIENCE)
    stop.ask()
    thread.join(PATIENCE)
    assert (status, ready) == ([0], [])


def test_what_the_application_raises_at_its_start_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise SettingsError("the bundle is missing")

    with pytest.raises(SettingsError, match="the bundle is missing"):
        server.run(broken, stop=Stop(), port=0)
    assert not caplog.records


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingsError) as caught:
            server.run(lambda *_: None, stop=Stop(), port=port)  # type: ignore[arg-type,return-value]
    assert str(caught.value) == f"port {port} on 127.0.0.1 is taken: choose another with --port"


@pytest.mark.parametrize(
    ("host", "port"), [("203.0.113.1", 0), ("127.0.0.1", 70_000), ("no.such.host.invalid", 0)]
)
def test_an_address_that_cannot_be_used_is_one_sentence(host: str, port: int) -> None:
    with (
        pytest.raises(SettingsError, match=f"port {port} on {host} cannot be used"),
        sockets.bound(host, port, None),
    ):
        pass


def test_a_unix_socket_is_the_owners_and_left_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "door"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # and stays, as after a kill
    with serving(uds=path) as served:
        assert path.stat().st_mode & 0o777 == sockets.UNIX_MODE
        assert served.lives()
        with pytest.raises(SettingsError, match="is taken"), sockets.bound("", 0, path):
            pass
    assert not path.exists()


def test_a_file_where_the_socket_should_be_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "door"
    path.write_text("mine")
    with pytest.raises(SettingsError, match="is taken"), sockets.bound("", 0, path):
        pass
    assert path.read_text() == "mine"


def test_more_connections_than_open_files_are_refused() -> None:
    with pytest.raises(SettingsError, match="ulimit -n"):
        sockets.allow_files(Limits(connections=10**9))


@pytest.mark.parametrize("level", [logging.DEBUG, 1])
def test_no_text_of_a_client_is_logged(caplog: pytest.LogCaptureFixture, level: int) -> None:
    with caplog.at_level(level), serving() as served:
        for sent in (
            request("GET", "/boom?FORGED"),
            request("GET", "/livez?FORGED%0aFORGED", "X-Request-Id: FORGED\x0b", "User-Agent: FORGED"),
            request("GET", "/half?FORGED"),
            b"FORGED\r\n\r\n",
            request("GET", "/livez", "Connection: upgrade", "Upgrade: FORGED"),
            request("POST", "/echo", "Transfer-Encoding: chunked") + b"FORGED\r\n",
        ):
            with served.client() as client:
                client.send(sent)
                client.end()
                client.rest()
    written = [logging.Formatter("%(message)s").format(one) for one in caplog.records]
    assert any("ValueError" in one for one in written)  # what is ours is logged
    assert not any("FORGED" in one for one in written)
    assert not any(one.name.startswith("uvicorn") for one in caplog.records)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_may_be_ipv6() -> None:
    with serving(host="::1") as served, served.client("::1") as client:
        assert client.get("/livez").status == 200
