"""Servers that misbehave, over real sockets; the same for both clients, which share what is tested here."""

from __future__ import annotations

import gzip
import io
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metastable.client import Client, ServerError
from metastable.client.exchange import MOST_BYTES
from metastable.errors import MetastableError
from tests.client.servers import GOOD, Act, Request, refusing, reply, serving, verdict
from tests.launched import free_port

PACKED = reply(said=gzip.compress(b"[" * 10_000), headers="Content-Encoding: gzip\r\n")


def failure(*acts: Act | Callable[[Request], Act], timeout: float = 30.0, retries: int = 0) -> ServerError:
    with serving(*acts) as served, Client(served.url, retries=retries, timeout=timeout) as client:
        with pytest.raises(ServerError) as caught:
            client.classify(b"image")
        assert len(served.seen) == 1
    return caught.value


@pytest.mark.parametrize(
    ("act", "code", "status", "said"),
    [
        (Act(then="close"), "disconnected", 0, "no answer from"),
        (Act(then="reset"), "disconnected", 0, "no answer from"),
        (Act(b"\x00\xffnot http at all\r\n\r\n", then="close"), "garbage", 0, "no answer from"),
        (Act(reply(said=b"{", length=99), then="close"), "disconnected", 200, "no answer from"),
        (Act(reply(said=b"{", length=99), then="reset"), "disconnected", 200, "no answer from"),
        (Act(reply(said=b"<html>fine</html>")), "garbage", 200, "is no Metastable server"),
        (Act(reply(said=b"[" * 300_000)), "garbage", 200, "is no Metastable server"),
        (Act(reply(said=b"1" * (MOST_BYTES + 1))), "garbage", 200, "more than"),
        (Act(reply(said=[])), "garbage", 200, "is no Metastable server"),
        (Act(reply(said=verdict(label="3"))), "garbage", 200, "is no Metastable server"),
        (Act(PACKED), "garbage", 200, "a packed reply"),
        (Act(reply("200 OK", b"", "X: " + "y" * 300_000 + "\r\n")), "garbage", 0, "no answer from"),
        (Act(reply("302 Found", b"", "Location: /other\r\n")), "status 302", 302, "answered 302: nothing"),
        (Act(reply("204 No Content", b"")), "status 204", 204, "answered 204: nothing"),
        (refusing("422 Unprocessable Content", code="invalid_option"), "invalid_option", 422, "try again"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_way_to_fail_has_its_code(act: Act, code: str, status: int, said: str) -> None:
    error = failure(act)
    assert (error.code, error.status) == (code, status)
    assert said in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("act", [Act(then="hang"), Act(reply(said=verdict()), pace=0.05)])
def test_a_server_that_trickles_or_hangs_is_ended_by_the_deadline(act: Act) -> None:
    """Every byte comes long before any pause would be noticed."""
    started = time.monotonic()
    error = failure(act, timeout=0.7)
    assert error.code == "timeout"
    assert time.monotonic() - started < 0.05 * len(reply(said=verdict()))  # what the whole would take
    assert "longer than 0.7 s" in str(error)


@pytest.mark.slow
def test_a_trickling_body_has_the_same_deadline() -> None:
    error = failure(Act(reply(said=b" " * 100_000), pace=0.002), timeout=1.0)
    assert (error.code, error.status) == ("timeout", 200)


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, retries=0) as client, pytest.raises(ServerError, match=f"no server answers at {url} "):
        client.classify(b"image")


def test_the_request_is_as_documented() -> None:
    with serving(GOOD) as served, Client(served.url, "the-key") as client:
        options = {"setting": "fast", "top_k": 5, "deadline": 2.5, "seed": 7}
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        client.classify(b"image", request_id="mine", traceparent=trace, **options)  # type: ignore[arg-type]
        [request] = served.seen
    assert (request.method, request.path, request.body) == ("POST", "/classify", b"image")
    expected = {
        "authorization": "Bearer the-key",
        "content-type": "application/octet-stream",
        "x-metastable-setting": "fast",
        "x-metastable-top-k": "5",
        "x-metastable-deadline-ms": "2500",
        "x-metastable-seed": "7",
        "x-request-id": "mine",
        "traceparent": trace,
    }
    assert expected.items() <= request.headers.items()


def test_what_is_not_asked_for_is_not_sent() -> None:
    with serving(GOOD) as served, Client(served.url) as client:
        client.classify(b"image", setting=None)
        [request] = served.seen
    assert not {"authorization", "x-request-id", "traceparent"} & set(request.headers)
    assert not [name for name in request.headers if name.startswith("x-metastable")]


def test_connections_are_kept_and_one_that_was_closed_is_no_failure() -> None:
    last = Act(GOOD.data, then="close")
    with serving(GOOD, last, GOOD) as served, Client(served.url) as client:
        for _ in range(3):
            assert client.classify(b"image").label == 3
        assert len(served.seen) == 3
        assert served.connections == 2


def test_a_redirect_is_not_followed_and_gets_no_key() -> None:
    with serving(GOOD) as other:
        there = f"Location: {other.url}/classify\r\n"
        with (
            serving(Act(reply("307 Temporary Redirect", b"", there))) as served,
            Client(served.url, "the-key") as client,
            pytest.raises(ServerError, match="307"),
        ):
            client.classify(b"image")
        assert not other.seen


def test_a_key_is_never_shown() -> None:
    def echo(request: Request) -> Act:
        key = request.headers["authorization"]
        said = {"error": {"code": "not_authorized", "message": f"{key} is wrong"}, "request_id": key}
        return Act(reply("401 Unauthorized", said))

    with serving(echo) as served, Client(served.url, "the-secret-key") as client:
        with pytest.raises(ServerError) as caught:
            client.classify(b"image")
        shown = [repr(client), str(caught.value), repr(caught.value), repr(vars(caught.value))]
        assert "with a key" in repr(client)
    assert caught.value.message == "Bearer [key] is wrong"
    assert not [text for text in shown if "secret" in text]


@pytest.mark.parametrize("key", ["two\nlines", "café-secret", " secret", "secret\x7f"])
def test_a_key_that_can_be_no_header_is_refused_unseen(key: str) -> None:
    with pytest.raises(ValueError, match="a key must be printable ASCII") as caught:
        Client(key=key)
    assert key.strip() not in str(caught.value)


def test_an_error_can_be_pickled() -> None:
    error = ServerError("sentence", "overloaded", 503, "message", "r-1", 2.0)
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error)
    assert str(again) == "sentence"
    assert isinstance(again, MetastableError)


def test_proxies_of_the_environment_are_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    with serving(GOOD) as served, Client(served.url, retries=0) as client:
        assert client.classify(b"image").label == 3
        assert len(served.seen) == 1


def test_proxies_of_the_environment_are_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(GOOD) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with Client("http://metastable.invalid", retries=0) as client:
            assert client.classify(b"image").label == 3
        assert proxy.seen[0].path == "http://metastable.invalid/classify"


def test_a_file_is_sent_as_it_is_and_an_array_as_npy(root: Path) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    with serving(GOOD) as served, Client(served.url) as client:
        for one in (root / "samples/cat.png", str(root / "samples/cat.png"), image, bytearray(b"x")):
            client.classify(one)
        bodies = [request.body for request in served.seen]
    assert bodies[0] == bodies[1] == (root / "samples/cat.png").read_bytes()
    assert (np.load(io.BytesIO(bodies[2])) == image).all()
    assert bodies[3] == b"x"


def test_what_is_no_image_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with serving(GOOD) as served, Client(served.url) as client:
        with pytest.raises(FileNotFoundError, match=r"gone\.png"):
            client.classify(tmp_path / "gone.png")
        with pytest.raises(TypeError, match="not int"):
            client.classify(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Object arrays"):
            client.classify(np.array([None]))
        with pytest.raises(TypeError, match="no option 'sitting'"):
            client.classify(b"x", sitting="fast")  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="X-Metastable-Setting must be printable"):
            client.classify(b"x", setting="fast\r\nX-Evil: 1")
        with pytest.raises(ValueError, match="deadline must be"):
            client.classify(b"x", deadline=float("nan"))
        assert not served.seen
