"""Deadlines, each shorter than a second here, and what is dropped after them."""

import dataclasses
import time
from collections.abc import Iterator

import pytest

from metastable.serving.door.limits import Limits
from tests.serving.door.served import PATIENCE, Client, Served, request, serving

QUICK = Limits(
    idle_seconds=0.4,
    head_seconds=0.4,
    body_seconds=0.4,
    body_rate=1e6,
    write_seconds=0.4,
    linger_seconds=0.4,
)


@pytest.fixture(scope="module")
def quick() -> Iterator[Served]:
    with serving(QUICK) as served:
        yield served


@pytest.mark.parametrize("sent", [b"", b"GET /livez", request("POST", "/echo", "Content-Length: 5") + b"ab"])
def test_what_stops_coming_is_dropped(quick: Served, sent: bytes) -> None:
    with quick.client() as client:
        client.send(sent)
        if sent:
            answer = client.answer()
            assert (answer.status, answer.code, answer.fields["connection"]) == (408, "too_slow", "close")
        assert client.rest() == b""


@pytest.mark.parametrize(
    "start", [b"GET /livez HTTP/1.1\r\nX: ", request("POST", "/echo", "Content-Length: 999")]
)
def test_a_trickle_does_not_move_a_deadline(quick: Served, start: bytes) -> None:
    with quick.client() as client:
        client.send(start)
        client.socket.settimeout(0.05)
        until = time.monotonic() + PATIENCE
        received = b""
        while not received:
            assert time.monotonic() < until
            client.send(b"a")
            try:
                received = client.socket.recv(4096)
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_comes_fast_enough_may_take_longer() -> None:
    pieces = 10 * [bytes(200_000)]  # each gives two seconds more
    with serving(dataclasses.replace(QUICK, body_rate=1e5)) as served, served.client() as client:
        client.send(request("POST", "/echo", f"Content-Length: {sum(map(len, pieces))}"))
        for piece in pieces:
            client.send(piece)
            time.sleep(2 * QUICK.body_seconds / len(pieces))
        assert client.answer().json["bytes"] == 2_000_000


def test_time_in_which_nothing_is_read_is_not_the_clients(quick: Served) -> None:
    quick.app.opened.clear()
    with quick.client() as client:
        client.send(request("POST", "/later", "Content-Length: 600001") + bytes(300_000))
        time.sleep(0.9)  # more than body_seconds, and what these bytes give
        quick.app.opened.set()
        client.send(bytes(300_001))
        assert client.answer().json["bytes"] == 600_001


def test_a_long_answer_has_no_deadline_and_the_next_request_has_its_own(quick: Served) -> None:
    quick.app.opened.clear()
    with quick.client() as client:
        client.send(request("GET", "/wait") + b"GET /li")  # the head of the second never becomes whole
        time.sleep(0.5)  # more than all deadlines
        quick.app.opened.set()
        assert client.answer().json["path"] == "/wait"
        assert client.answer().status == 408


def test_a_kept_connection_that_asks_nothing_is_closed_without_a_word(quick: Served) -> None:
    with quick.client() as client:
        client.get("/livez")
        assert client.rest() == b""


def test_a_client_that_does_not_read_is_dropped(quick: Served) -> None:
    with quick.client() as client:
        client.send(request("GET", "/flood"))
        time.sleep(0.6)
        assert len(client.rest()) < 100_000_000
    assert quick.lives()


def test_what_is_dropped_is_bounded_in_bytes_and_time() -> None:
    with serving(Limits(linger_bytes=2**20, linger_seconds=0.3)) as served:
        with served.client() as client:
            client.send(request("POST", "/refused", "Content-Length: 99000000"))
            with pytest.raises(ConnectionError):
                client.send(bytes(99_000_000))
        with served.client() as client:
            client.send(request("POST", "/refused", "Content-Length: 9999") + b"a")
            assert client.answer().status == 503
            with pytest.raises(ConnectionError):
                trickle(client, 1000)


def trickle(client: Client, count: int) -> None:
    for _ in range(count):
        client.send(b"a")
        time.sleep(0.02)
