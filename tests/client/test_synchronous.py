from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metastable.client import Answer, Client, ServerError, pictures
from metastable.client.failure import UNREADABLE
from metastable.errors import DataError
from tests.client.servers import GOOD, Act, Request, refusing, reply, serving, verdict
from tests.launched import free_port


def by_body(request: Request) -> Act:
    """The label that stands in the body; an odd one takes longer, 66 is refused."""
    label = int(request.body)
    if label == 66:
        return refusing("422 Unprocessable Content", code="invalid_image")
    time.sleep(0.002 * (label % 2))
    return Act(reply(said=verdict(label)))


@pytest.mark.parametrize(
    "first",
    [
        refusing(headers="Retry-After: 0\r\n"),
        refusing("429 Too Many Requests", "Retry-After: 0\r\n", "too_many"),
        refusing(headers="Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
        refusing(),
        Act(then="close"),
        Act(then="reset"),
    ],
)
def test_what_may_pass_is_tried_again(first: Act) -> None:
    with serving(first, first, GOOD) as served, Client(served.url, retries=2) as client:
        assert client.classify(b"image").label == 3
        assert [request.body for request in served.seen] == [b"image"] * 3


def test_a_server_that_starts_later_is_found() -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}", retries=100, timeout=60) as client, ThreadPoolExecutor() as pool:
        answer = pool.submit(client.classify, b"image")
        time.sleep(0.1)
        with socket.create_server(("127.0.0.1", port)) as late:
            connection, _ = late.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply(said=verdict()))
                assert answer.result().label == 3


def test_retries_come_to_an_end_with_the_last_error() -> None:
    with serving(refusing(headers="Retry-After: 0\r\n")) as served, Client(served.url, retries=2) as client:
        with pytest.raises(ServerError, match="answered 503: try again") as caught:
            client.classify(b"image")
        assert len(served.seen) == 3
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == ("overloaded", 503, 0.0)
    assert (caught.value.message, caught.value.request_id) == ("try again", "r-9")


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 415, 422, 499, 500, 502, 504])
def test_other_errors_are_final_whatever_they_ask_for(status: int) -> None:
    with serving(refusing(f"{status} X", "Retry-After: 0\r\n")) as served, Client(served.url) as client:
        with pytest.raises(ServerError):
            client.classify(b"image")
        assert len(served.seen) == 1


@pytest.mark.parametrize(("timeout", "deadline"), [(30.0, None), (120.0, 30.0)])
def test_nobody_waits_for_what_comes_too_late(timeout: float, deadline: float | None) -> None:
    """The test would take a minute if it did."""
    act = refusing(headers="Retry-After: 60\r\n")
    with serving(act) as served, Client(served.url, timeout=timeout) as client:
        with pytest.raises(ServerError, match="503") as caught:
            client.classify(b"image", deadline=deadline)
        assert len(served.seen) == 1
    assert caught.value.retry_after == 60


def test_a_deadline_shrinks_while_it_is_waited() -> None:
    with serving(refusing(), GOOD) as served, Client(served.url, retries=1) as client:
        client.classify(b"image", deadline=20)
        first, second = (int(request.headers["x-metastable-deadline-ms"]) for request in served.seen)
    assert first == 20_000 > second > 0


def test_many_threads_share_a_client() -> None:
    with serving(by_body) as served, Client(served.url) as client, ThreadPoolExecutor(8) as pool:
        labels = list(pool.map(lambda i: client.classify(str(i % 50).encode()).label, range(200)))
    assert labels == [i % 50 for i in range(200)]


def test_every_image_has_its_outcome_in_order(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    images = [b"1", tmp_path / "gone.png", b"66", *(str(i).encode() for i in range(20))]
    with serving(by_body) as served, Client(served.url) as client:
        found = client.classify_all(images, at_once=3, progress=lambda *said: told.append(said))
        assert len(served.seen) == 22
    first, gone, refused, *rest = found
    assert isinstance(first, Answer)
    assert isinstance(gone, ServerError)
    assert isinstance(refused, ServerError)
    assert (gone.code, gone.status, refused.code) == (UNREADABLE, 0, "invalid_image")
    assert str(gone) == f"{tmp_path / 'gone.png'}: No such file or directory"
    assert [one.label for one in rest if isinstance(one, Answer)] == list(range(20))
    assert told == [(done, 23) for done in range(1, 24)]


def test_no_more_are_under_way_than_asked_for() -> None:
    """A server that answers nobody hears of as many as may be under way."""
    with serving(Act(then="hang")) as served, Client(served.url, timeout=0.5, retries=0) as client:
        found = client.classify_all([b"1"] * 3, at_once=2, progress=None)
        assert served.connections == 3
        assert [one.code for one in found if isinstance(one, ServerError)] == ["timeout"] * 3
    with serving(by_body) as served, Client(served.url) as client:
        client.classify_all([b"1"] * 9, at_once=2, progress=None)
        assert served.connections == 2


def test_a_folder_is_walked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.png", "a.jpg", "below/c.npy", "notes.txt"):
        (tmp_path / name).write_bytes(str(len(name)).encode())
    with serving(by_body) as served, Client(served.url) as client:
        found = client.classify_all(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in pictures(tmp_path)]
    assert names == ["a.jpg", "b.png", "below/c.npy"]
    assert [one.label for one in found if isinstance(one, Answer)] == [5, 5, 11]


def test_what_is_no_list_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with serving(GOOD) as served, Client(served.url) as client:
        with pytest.raises(DataError, match="holds no pictures"):
            client.classify_all(tmp_path)
        with pytest.raises(TypeError, match="put it into a list"):
            client.classify_all(b"image")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="at_once must be 1"):
            client.classify_all([b"x"], at_once=0)
        with pytest.raises(ValueError, match="Setting must be printable"):
            client.classify_all([b"x"], setting="\n")
        assert client.classify_all([]) == []
        assert not served.seen


def test_what_can_be_no_image_ends_all() -> None:
    with serving(GOOD) as served, Client(served.url) as client, pytest.raises(TypeError, match="not int"):
        client.classify_all([b"1", 2, b"3"], progress=None)  # type: ignore[list-item]


def test_a_server_says_whether_it_is_ready_and_what_it_serves() -> None:
    said = {"name": "metastable", "inputs": [], "outputs": [], "platform": "x"}

    def door(request: Request) -> Act:
        return {
            "/readyz": Act(reply(said={"status": "ready"})),
            "/livez": Act(reply(said={"status": "live"})),
            "/v2/models/metastable": Act(reply(said=said)),
        }[request.path]

    with serving(door) as served:
        for url in (served.url, f"{served.url}/", f"{served.url}/classify"):
            with Client(url, "the-key") as client:
                assert client.ready()
                assert client.live()
                assert client.describe().name == "metastable"
        assert {request.headers["authorization"] for request in served.seen} == {"Bearer the-key"}
        assert {request.method for request in served.seen} == {"GET"}


def test_a_server_that_is_not_ready() -> None:
    with serving(refusing(code="draining")) as served, Client(served.url) as client:
        assert not client.ready()
        assert not client.live()
        assert len(served.seen) == 2
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        assert not client.ready()
        with pytest.raises(ServerError, match="no server answers"):
            client.live()


def test_another_server_knows_none_of_it() -> None:
    with serving(Act(reply("404 Not Found", b"nothing here"))) as served, Client(served.url) as client:
        with pytest.raises(ServerError, match="answered 404: nothing here"):
            client.ready()
        with pytest.raises(ServerError, match="answered 404: nothing here"):
            client.describe()
    with (
        serving(Act(reply(said=[]))) as served,
        Client(served.url) as client,
        pytest.raises(ServerError, match="is no Metastable server"),
    ):
        client.describe()


def test_a_closed_client_says_so() -> None:
    with serving(Act(then="hang")) as served, ThreadPoolExecutor() as pool:
        client = Client(served.url)
        waiting = pool.submit(client.classify, b"image")
        while not served.seen:
            time.sleep(0.01)
        client.close()
        with pytest.raises(RuntimeError, match="closed before the answer"):
            waiting.result()
        with pytest.raises(RuntimeError, match="this client is closed"):
            client.classify(b"image")
        client.close()


def test_a_client_that_nobody_holds_ends_its_thread() -> None:
    def threads() -> int:
        return sum(thread.name == "metastable client" for thread in threading.enumerate())

    before = threads()
    with serving(GOOD) as served:
        client = Client(served.url)
        client.classify(b"image")
        assert threads() == before + 1
        del client
        gc.collect()
        for _ in range(500):
            if threads() == before:
                break
            time.sleep(0.01)
    assert threads() == before


@pytest.mark.slow
def test_ctrl_c_reaches_who_waits() -> None:
    code = (
        "import signal, sys\n"
        "from metastable.client import Client\n"
        "signal.setitimer(signal.ITIMER_REAL, 1.0)\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "with Client(sys.argv[1]) as client:\n"
        "    try:\n"
        "        client.classify(b'image')\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n"
    )
    with serving(Act(then="hang")) as served:
        command = [sys.executable, "-W", "error", "-c", code, served.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("stopped\n", "")


@pytest.mark.slow
def test_the_client_needs_no_pytorch() -> None:
    code = (
        "import json, sys, metastable.client\n"
        "print(json.dumps([n for n in ('torch', 'numpy', 'scipy', 'PIL', 'yaml') if n in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
