"""Whatever bytes come, nothing of them is the server's fault, and the server lives."""

import contextlib
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.door.served import Served, serving

GOOD = [
    b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /livez HTTP/1.0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n",
    b"POST /limited HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/%ff%00?x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
]
PIECES = [
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b":",
    b"HTTP/9.9",
    b"HTTP/1.0",
    b"Transfer-Encoding: gzip\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Expect: 100-continue\r\n",
    b"X-Request-Id: \x80\r\n",
    b"traceparent: 00-0-0-0\r\n",
    b"X-Forwarded-For: [::1, ,\r\n",
    b"Authorization: Bearer \xff\r\n",
    b"ffffffffffffffffffff\r\n",
    b"A: " + b"a" * 20_000,
]


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with serving() as served:
        yield served


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Good requests, one after another, with bytes changed, cut out, and put in."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["put", "cut", "change"])):
            case "put":
                data[at:at] = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case _:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(data)


def statuses(door: Served, sent: bytes) -> list[int]:
    with door.client() as client:
        with contextlib.suppress(ConnectionError):
            client.send(sent)
            client.end()
        return [int(one) for one in re.findall(rb"^HTTP/1\.1 (\d+) ", client.rest(), re.MULTILINE)]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(sent=st.one_of(mutated(), mutated(), st.binary(max_size=200)))
def test_no_bytes_give_a_5xx_or_end_the_server(door: Served, sent: bytes) -> None:
    for status in statuses(door, sent):
        assert status in (100, 200, 204, 400, 404, 405, 413, 431)
    assert door.thread.is_alive()


def test_the_server_lives_after_all_that(door: Served) -> None:
    assert door.lives()
    for sent in GOOD:
        assert statuses(door, sent)
