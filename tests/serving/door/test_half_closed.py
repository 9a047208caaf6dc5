"""Clients that end their side and wait, and clients that are gone: TCP says the same of both."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.door.served import PATIENCE, Served, request, serving


@pytest.fixture(scope="module", params=["tcp", "unix"])
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path: Path | None = tmp_path_factory.mktemp("door") / "s" if request.param == "unix" else None
    with serving(uds=path) as served:
        yield served


def test_who_ends_the_own_side_after_a_request_gets_the_answer(door: Served) -> None:
    door.app.opened.clear()
    with door.client() as client:
        client.send(request("GET", "/wait"))
        client.end()
        if not isinstance(door.address, str):  # the probe comes before the answer
            assert client.socket.recv(25, socket.MSG_PEEK) == b"HTTP/1.1 100 Continue\r\n\r\n"
        door.app.opened.set()
        answer = client.answer()
        assert (answer.status, answer.json["path"]) == (200, "/wait")
        assert client.rest() == b""


def test_who_ends_after_pipelined_requests_gets_all_answers(door: Served) -> None:
    door.app.opened.clear()
    with door.client() as client:
        client.send(request("GET", "/wait") + request("GET", "/livez"))
        client.end()
        door.app.opened.set()
        assert [client.answer().json["path"] for _ in range(2)] == ["/wait", "/livez"]
        assert client.rest() == b""


def test_who_ends_within_a_request_is_told(door: Served) -> None:
    for sent in (b"GET /livez HT", request("POST", "/echo", "Content-Length: 9") + b"abc"):
        with door.client() as client:
            client.send(sent)
            client.end()
            assert client.answer().code == "malformed_request"
            assert client.rest() == b""


@pytest.mark.parametrize("cut", [b"GET /livez HT", request("POST", "/echo", "Content-Length: 9") + b"abc"])
def test_who_ends_within_a_second_request_is_told_after_the_first_answer(door: Served, cut: bytes) -> None:
    door.app.opened.clear()
    with door.client() as client:
        client.send(request("GET", "/wait") + cut)
        client.end()
        while not door.app.seen or door.app.seen[-1]["path"] != "/wait":
            assert door.app.entered.acquire(timeout=PATIENCE)
        with door.client() as other:
            other.get("/livez")  # by now the end has been noticed
        door.app.opened.set()
        assert client.answer().json["path"] == "/wait"
        assert client.answer().status == 400
        assert client.rest() == b""


def test_who_ends_without_a_request_gets_nothing(door: Served) -> None:
    with door.client() as client:
        client.end()
        assert client.rest() == b""


@pytest.mark.parametrize("how", ["closed", "reset", "within the body", "with another request behind", "1.0"])
def test_the_application_learns_at_once_that_a_client_is_gone(door: Served, how: str) -> None:
    client = door.client()
    fields = ["Content-Length: 9"] if how == "within the body" else []
    sent = request("POST", "/hang", *fields)
    client.send(sent.replace(b"HTTP/1.1", b"HTTP/1.0") if how == "1.0" else sent)
    if how == "with another request behind":
        client.send(request("GET", "/livez"))
    while not door.app.seen or door.app.seen[-1]["path"] != "/hang":
        assert door.app.entered.acquire(timeout=PATIENCE)
    if how == "reset" and not isinstance(door.address, str):
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert door.app.left.acquire(timeout=PATIENCE)
    assert door.lives()
