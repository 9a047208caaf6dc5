"""The line of what is answered without the application: by the shell, or before it was a request."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from metastable.serving.door.access import Keys
from metastable.serving.door.limits import Limits
from metastable.serving.door.observing import Observer
from tests.serving.door.running import PATIENCE
from tests.serving.door.served import Served, request, serving
from tests.serving.door.written import MARK, Log, logging_to


@contextmanager
def small(path: Path, **given: Any) -> Iterator[tuple[Served, Log]]:
    with logging_to(path) as log, serving(observer=Observer(), **given) as door:
        yield door, log


def cut_head(door: Served) -> int:
    with door.client() as client:
        client.send(b"GET / HT")
        client.end()
        return client.answer().status


def long_head(door: Served) -> int:
    with door.client() as client:
        return client.get("/" + MARK * 20_000).status


def no_http(door: Served) -> int:
    with door.client() as client:
        client.send(f"{MARK}\0\r\n\r\n".encode())
        return client.answer().status


def slow_head(door: Served) -> int:
    with door.client() as client:
        client.send(f"GET /{MARK}".encode())
        return client.answer().status


@pytest.mark.parametrize(
    ("rude", "status", "code"),
    [
        (cut_head, 400, "malformed_request"),
        (long_head, 431, "head_too_large"),
        (no_http, 400, "malformed_request"),
        (slow_head, 408, "too_slow"),
    ],
)
def test_what_is_no_request_has_a_line_too(
    rude: Callable[[Served], int], status: int, code: str, tmp_path: Path
) -> None:
    with small(tmp_path / "log", limits=Limits(head_seconds=0.3)) as (door, log):
        assert rude(door) == status
        [line] = log.next()
    assert (line["event"], line["status"], line["code"]) == ("refused", status, code)
    assert MARK not in log.text


def test_a_body_that_does_not_come_is_one_line(tmp_path: Path) -> None:
    with small(tmp_path / "log", limits=Limits(body_seconds=0.3)) as (door, log):
        with door.client() as client:
            client.send(request("POST", "/echo", "Content-Length: 9", "X-Request-Id: slow") + b"abc")
            assert client.answer().status == 408
        [line] = log.next()
    assert (line["status"], line["code"], line["request_id"]) == (408, "too_slow", "slow")
    assert line["bytes_in"] == 3
    assert "receive" not in line["seconds"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_body_that_breaks_is_one_line(tmp_path: Path, at_once: bool) -> None:
    with small(tmp_path / "log") as (door, log):
        with door.client() as client:
            head = request("POST", "/echo", "Transfer-Encoding: chunked", "X-Request-Id: broken")
            client.send(head + b"nonsense\r\n" if at_once else head)
            if not at_once:
                client.send(b"1\r\nx\r\n")
                time.sleep(0.1)  # the application is reading by now
                client.send(b"nonsense\r\n")
            assert client.answer().status == 400
        [line] = log.next()
        assert (line["event"], line["status"], line["request_id"]) == ("request", 400, "broken")
        with door.client() as client:
            assert client.get("/echo").status == 200
        [line] = log.next()
        assert line["status"] == 200


def test_who_leaves_is_told_as_that(tmp_path: Path) -> None:
    with small(tmp_path / "log") as (door, log):
        with door.client() as client:
            client.send(request("POST", "/echo", "Content-Length: 9") + b"abc")
            assert door.app.entered.acquire(timeout=PATIENCE)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        [line] = log.next()
    assert (line["status"], line["code"], line["level"]) == (499, "cancelled", "info")


def test_a_fault_is_an_error_and_quotes_nobody(tmp_path: Path) -> None:
    with small(tmp_path / "log") as (door, log):
        with door.client() as client:
            assert client.get(f"/boom?{MARK}").status == 500
        [line] = log.next()
        with door.client() as client:
            client.send(request("GET", "/half"))
            client.rest()
        [half] = log.next()
    assert (line["status"], line["code"], line["level"]) == (500, "internal", "error")
    assert (half["status"], half["code"]) == (200, "internal")
    assert MARK not in log.text
    assert "builtins.ValueError" in log.text  # what report says of it


def test_who_has_no_key_is_not_named(tmp_path: Path) -> None:
    with small(tmp_path / "log", keys=Keys({"me": "k" * 40})) as (door, log):
        with door.client() as client:
            assert client.get("/echo", f"Authorization: Bearer {MARK}{MARK}").status == 401
        [line] = log.next()
    assert (line["status"], line["code"]) == (401, "not_authorized")
    assert MARK not in log.text


def test_too_much_under_way_and_a_stop_have_their_codes(tmp_path: Path) -> None:
    limits = Limits(client_requests=1)
    with small(tmp_path / "log", limits=limits, grace_seconds=30.0) as (door, log), ExitStack() as stack:
        waiting, other = (stack.enter_context(door.client()) for _ in range(2))
        waiting.send(request("GET", "/wait"))
        assert door.app.entered.acquire(timeout=PATIENCE)
        assert other.get("/wait").status == 429
        [many] = log.next()
        door.app.opened.set()
        assert waiting.answer().status == 200
        log.next()
        door.stop.ask()
        with door.client() as late:
            assert late.get("/echo").status == 503
        [draining] = log.next()
    assert (many["code"], many["level"]) == ("too_many", "info")
    assert (draining["code"], draining["level"]) == ("draining", "warning")


def test_a_crowd_is_told_of(tmp_path: Path) -> None:
    with small(tmp_path / "log", limits=Limits(connections=1, spare=1)) as (door, log), ExitStack() as stack:
        one, other, third = (stack.enter_context(door.client()) for _ in range(3))
        assert one.get("/livez").status == 200
        assert third.answer().status == 503
        [unheard] = log.next()
        assert other.get("/echo").status == 503
        [line] = log.next()
    assert (unheard["event"], unheard["code"]) == ("refused", "overloaded")
    assert (line["event"], line["code"]) == ("request", "overloaded")
