from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.errors import MalformedRequest, Overloaded, TooLarge, UnsupportedImage
from metastable.serving.door import bodies
from metastable.serving.door.bodies import Budget

PACK = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}


async def sent(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@given(st.sampled_from(sorted(PACK)), st.binary(max_size=2000))
def test_an_encoding_is_undone(encoding: str, body: bytes) -> None:
    budget = Budget(10_000)
    with budget.share() as share:
        assert bodies.plain(PACK[encoding](body), encoding.upper() + " ", share, 2000) == body
    assert budget.held == 0


def test_gzip_files_may_follow_one_another() -> None:
    with Budget(100).share() as share:
        assert bodies.plain(gzip.compress(b"one") + gzip.compress(b"two"), "gzip", share, 6) == b"onetwo"


@given(
    st.sampled_from(["gzip", "deflate"]), st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255)
)
def test_a_damaged_body_is_refused_or_whole(encoding: str, body: bytes, at: int, level: int) -> None:
    packed = bytearray(PACK[encoding](body))
    packed[at % len(packed)] = level
    with Budget(10_000_000).share() as share:
        try:
            found = bodies.plain(bytes(packed[: at + 5]), encoding, share, 1000)
        except (MalformedRequest, TooLarge):
            return
    assert found == body or encoding == "gzip"  # a header of gzip has bytes that mean nothing


def test_many_empty_streams_are_refused() -> None:
    """Each costs more than its twenty bytes."""
    body = gzip.compress(b"") * 1000
    with Budget(100).share() as share:
        assert bodies.plain(body, "gzip", share, 6) == b""
        with pytest.raises(MalformedRequest, match="more than 1000 gzip streams"):
            bodies.plain(gzip.compress(b"") * 400_000, "gzip", share, 6)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "x", "gzip;q=1"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with Budget(10).share() as share, pytest.raises(UnsupportedImage, match="gzip or deflate or identity"):
        bodies.plain(b"", encoding, share, 1)


def test_a_bomb_is_stopped_where_it_passes_the_limit() -> None:
    budget = Budget(10**9)
    with budget.share() as share:
        with pytest.raises(TooLarge, match="above 1000000 bytes"):
            bodies.plain(gzip.compress(bytes(50_000_000)), "gzip", share, 1_000_000)
        assert budget.held < 2_000_000


def test_bodies_are_bounded_alone_and_together() -> None:
    async def run() -> None:
        budget = Budget(10)
        with budget.share() as first, budget.share() as second:
            assert await bodies.read(sent(b"123", b"4"), first, 4) == b"1234"
            with pytest.raises(TooLarge, match="above 4 bytes"):
                await bodies.read(sent(b"123", b"45"), second, 4)
            with pytest.raises(Overloaded, match="7 bytes of other requests, of 10") as caught:
                await bodies.read(sent(b"1234"), second, 4)
            assert caught.value.retry_after == 1.0
            assert budget.held == 7
        assert budget.held == 0

    asyncio.run(run())


@pytest.mark.parametrize("length", [None, "", "x", "-1", "10"])
def test_a_length_is_no_more_than_a_hint(length: str | None) -> None:
    bodies.check_length(length, 10)
    with pytest.raises(TooLarge):
        bodies.check_length("11", 10)
