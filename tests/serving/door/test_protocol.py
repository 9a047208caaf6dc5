"""What is answered to what, on a real connection; see test_deadlines.py for when."""

import asyncio
import asyncio.selector_events
import errno
import socket
from collections.abc import Iterator

import pytest

from metastable.serving.door.protocol import DoorProtocol
from tests.serving.door.served import Client, Served, request, serving


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def client(door: Served) -> Iterator[Client]:
    with door.client() as one:
        yield one


def test_a_connection_answers_one_request_after_another(client: Client) -> None:
    for path in ("/livez", "/nowhere", "/livez"):
        answer = client.get(path)
        assert (answer.status, answer.json["path"]) == (404 if path == "/nowhere" else 200, path)
        assert "connection" not in answer.fields
        assert "server" not in answer.fields
        assert answer.fields["date"].endswith("GMT")


def test_a_body_comes_whole_with_a_length_and_in_chunks(client: Client) -> None:
    assert client.post("/echo", bytes(3_000_000)).json["bytes"] == 3_000_000
    client.send(request("POST", "/echo", "Transfer-Encoding: chunked"))
    client.send(b"fa0\r\n" + bytes(4000) + b"\r\n3\r\nabc\r\n0\r\n\r\n")
    assert client.answer().json["bytes"] == 4003


def test_a_client_may_wait_for_100_continue(client: Client) -> None:
    client.send(request("POST", "/echo", "Content-Length: 3", "Expect: 100-continue"))
    assert client.file.readline() == b"HTTP/1.1 100 Continue\r\n"
    client.send(b"abc")
    assert client.file.readline() == b"\r\n"
    assert client.answer().json["bytes"] == 3


def test_a_refused_client_that_waits_for_100_continue_sends_no_body(client: Client) -> None:
    client.send(request("POST", "/refused", "Content-Length: 3", "Expect: 100-continue"))
    answer = client.answer()
    assert (answer.status, answer.interim, answer.fields["connection"]) == (503, [], "close")
    assert client.rest() == b""


def test_pipelined_requests_are_answered_in_order(door: Served, client: Client) -> None:
    door.app.opened.clear()
    client.send(request("GET", "/wait") + request("POST", "/echo", "Content-Length: 2") + b"ab")
    client.send(request("GET", "/livez"))
    with door.client() as other:
        other.get("/livez")  # the server has time for others, and for the second if it took it too early
    door.app.opened.set()
    assert [client.answer().json["path"] for _ in range(3)] == ["/wait", "/echo", "/livez"]


def test_much_that_is_pipelined_is_held_back_and_all_answered(door: Served, client: Client) -> None:
    door.app.opened.clear()
    client.send(request("GET", "/wait"))
    client.send(200 * (request("POST", "/echo", "Content-Length: 1000") + bytes(1000)))
    door.app.opened.set()
    assert client.answer().json["path"] == "/wait"
    assert [client.answer().json["bytes"] for _ in range(200)] == [1000] * 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\1\2\r\n\r\n",
        b"HELO\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n<script> : b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: <script>\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n<script>\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET <script> HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1500,
    ],
)
def test_what_is_not_http_gets_a_400_that_repeats_nothing(client: Client, sent: bytes) -> None:
    client.send(sent)
    answer = client.answer()
    assert (answer.status, answer.code) == (400, "malformed_request")
    assert set(answer.json) == {"error", "request_id"}
    assert b"script" not in answer.body


@pytest.mark.parametrize("size", [16_000, 20_000, 300_000])
def test_a_head_is_bounded(client: Client, size: int) -> None:
    client.send(request("GET", "/livez", *(f"X-{n}: {'a' * 90}" for n in range(size // 100))))
    answer = client.answer()
    assert answer.status == (200 if size == 16_000 else 431)
    if answer.status == 431:
        assert answer.code == "head_too_large"


def test_targets_that_are_no_paths(client: Client) -> None:
    client.send(request("OPTIONS", "*"))
    answer = client.answer()
    assert (answer.status, answer.fields["allow"]) == (204, "GET, HEAD, POST, OPTIONS")
    assert client.get("http://elsewhere:1/livez?a=b").json["path"] == "/livez"
    assert client.get("HTTP://elsewhere").json["path"] == "/"
    client.send(request("CONNECT", "elsewhere:443"))
    answer = client.answer()
    assert (answer.status, answer.code, answer.fields["allow"]) == (
        405,
        "method_not_allowed",
        "GET, HEAD, POST, OPTIONS",
    )
    assert client.get("/livez").status == 200


def test_an_upgrade_is_not_made(client: Client) -> None:
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: a",
        "Sec-WebSocket-Version: 13",
    )
    assert client.get("/livez", *upgrade).status == 200
    assert client.get("/livez", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c").status == 200


def test_http_1_0_is_answered_and_closed(client: Client) -> None:
    client.send(b"GET /livez HTTP/1.0\r\n\r\n")
    assert client.answer().fields["connection"] == "close"
    assert client.rest() == b""


def test_head_has_no_body(client: Client) -> None:
    client.send(request("HEAD", "/livez") + request("GET", "/livez"))
    assert int(client.answer(head_only=True).fields["content-length"]) > 0
    assert client.answer().json["path"] == "/livez"


@pytest.mark.parametrize("path", ["/boom", "/silent"])
def test_a_fault_is_a_500_in_our_form(client: Client, path: str) -> None:
    answer = client.get(f"{path}?secret", "X-Request-Id: mine")
    assert (answer.status, answer.code, answer.json["request_id"]) == (500, "internal", "mine")
    assert answer.fields["x-request-id"] == "mine"
    assert b"secret" not in answer.body


def test_an_answer_that_breaks_off_ends_the_connection(door: Served, client: Client) -> None:
    client.send(request("GET", "/half"))
    assert not client.rest().endswith(b"0\r\n\r\n")  # the end of a whole answer in chunks
    assert door.lives()


@pytest.mark.parametrize("path", ["/limited", "/refused"])
def test_a_client_that_sends_far_too_much_reads_why(client: Client, path: str) -> None:
    client.send(request("POST", path, "Content-Length: 50000000"))
    client.send(bytes(50_000_000))
    answer = client.answer()
    assert (answer.status, answer.fields["connection"]) == (413 if path == "/limited" else 503, "close")
    assert client.rest() == b""


def test_a_reset_that_comes_while_an_answer_is_written(
    door: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(transport: asyncio.Transport) -> None:
        raise OSError(errno.ENOTCONN, "not connected")

    monkeypatch.setattr(asyncio.selector_events._SelectorSocketTransport, "write_eof", fail)
    with door.client() as client:
        client.send(b"HELO\r\n\r\n")
        client.rest()
    assert door.lives()
    assert not caplog.records


def test_answers_are_sent_without_delay(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    made = DoorProtocol.connection_made

    def spy(self: DoorProtocol, transport: asyncio.Transport) -> None:
        own = transport.get_extra_info("socket")
        found.append(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(DoorProtocol, "connection_made", spy)
    assert door.lives()
    assert found
    assert 0 not in found
