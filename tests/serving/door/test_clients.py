"""Addresses, proxies and counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.errors import SettingsError
from metastable.serving.door.clients import UNIX, Counts, Proxies


def scope(peer: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", one.encode()) for one in forwarded]
    return {"client": None if peer is None else (peer, 1), "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, nonsense, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:80"], "2001:db8::/64"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8::1:2:3:4", [], "2001:db8::/64"),
        (None, ["198.51.100.1"], "198.51.100.1"),
        (None, [], UNIX),
    ],
)
def test_whose_a_request_is(peer: str | None, forwarded: list[str], client: str) -> None:
    assert Proxies(["10.0.0.0/8", "unix"]).client(scope(peer, *forwarded)) == client


def test_nobody_is_trusted_by_default() -> None:
    assert Proxies().client(scope("127.0.0.1", "198.51.100.1")) == "127.0.0.1"
    assert Proxies().client(scope(None, "198.51.100.1")) == UNIX


@pytest.mark.parametrize("name", ["proxy.example", "10.0.0.1/8", "*", ""])
def test_a_proxy_is_an_address_or_a_network(name: str) -> None:
    with pytest.raises(SettingsError, match="a trusted proxy must be"):
        Proxies([name])


@given(st.binary(max_size=60))
def test_no_field_breaks_it(written: bytes) -> None:
    found = Proxies(["10.0.0.1"]).client(
        {"client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", written)]}
    )
    assert found


def test_counts_keep_only_clients_that_have_something() -> None:
    counts = Counts()
    for client in map(str, range(1000)):
        counts.add(client)
        counts.add(client)
        counts.remove(client)
        assert counts[client] == 1
        counts.remove(client)
        assert counts[client] == 0
    assert len(counts) == 0
