"""Request ids and trace contexts."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.serving.door import identity
from tests.serving.door.served import Served, serving

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("given", ["a", "A.b-c_9", "x" * 128])
def test_an_id_is_taken_over(given: str) -> None:
    assert identity.request_id([(b"x-request-id", given.encode())]) == given


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\n", b"\xc3\xa9", b"<a>", b"a,b"])
def test_another_is_replaced_by_a_fresh_one(given: bytes) -> None:
    fresh = {identity.request_id([(b"x-request-id", given)]) for _ in range(2)}
    assert len(fresh) == 2
    assert all(len(one) == 32 for one in fresh)


def test_two_ids_are_none() -> None:
    assert len(identity.request_id([(b"x-request-id", b"a"), (b"x-request-id", b"a")])) == 32


@pytest.mark.parametrize("given", [TRACE, "cc" + TRACE[2:], "cc" + TRACE[2:] + "-more"])
def test_a_valid_trace_context_is_kept(given: str) -> None:
    assert identity.traceparent([(b"traceparent", given.encode())]) == given


@pytest.mark.parametrize(
    "given",
    [
        "",
        TRACE[:-1],
        TRACE + "-more",
        TRACE + "0",
        TRACE.upper(),
        "ff" + TRACE[2:],
        TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TRACE.replace("b7ad6b7169203331", "0" * 16),
    ],
)
def test_an_invalid_one_is_dropped(given: str) -> None:
    assert identity.traceparent([(b"traceparent", given.encode())]) is None


@given(st.binary(max_size=200))
def test_nothing_unsafe_is_echoed(given: bytes) -> None:
    headers = [(b"x-request-id", given), (b"traceparent", given)]
    for value in (identity.request_id(headers), identity.traceparent(headers) or "-"):
        assert set(value) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/boom"])
def test_every_answer_has_both(door: Served, path: str) -> None:
    with door.client() as client:
        answer = client.get(path, "X-Request-Id: mine", f"Traceparent: {TRACE}")
    assert (answer.fields["x-request-id"], answer.fields["traceparent"]) == ("mine", TRACE)
    assert answer.json["request_id"] == "mine"
    assert door.app.seen[-1]["state"]["traceparent"] == TRACE
    with door.client() as client:
        assert "traceparent" not in client.get(path).fields
