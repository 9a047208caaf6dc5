from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.client import Client
from metastable.client.address import beside, checked, is_loopback, of_predictions
from metastable.errors import MetastableError


@pytest.mark.parametrize(
    "url", ["", "nonsense", "127.0.0.1:8080", "ftp://127.0.0.1/", "http://", "http://a\n/"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(MetastableError, match="address"):
        Client(url)


def test_an_address_with_a_password_is_refused_unseen() -> None:
    with pytest.raises(MetastableError, match="give a key") as caught:
        Client("http://me:secret@127.0.0.1")
    assert "secret" not in str(caught.value)


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    for url in (text, f"http://{text}"):
        with contextlib.suppress(MetastableError):
            assert checked(url).host


@pytest.mark.parametrize(
    ("url", "predictions", "ready"),
    [
        ("http://a:1", "http://a:1/classify", "http://a:1/readyz"),
        ("http://a:1/", "http://a:1/classify", "http://a:1/readyz"),
        ("http://a/classify", "http://a/classify", "http://a/readyz"),
        ("http://a/in/classify", "http://a/in/classify", "http://a/in/readyz"),
        ("http://a/in/predictions/m/2.0", "http://a/in/predictions/m/2.0", "http://a/in/readyz"),
        ("http://a/elsewhere", "http://a/elsewhere", "http://a/readyz"),
    ],
)
def test_paths_follow_from_the_address(url: str, predictions: str, ready: str) -> None:
    found = of_predictions(checked(url))
    assert str(found) == predictions
    assert str(beside(found, "/readyz")) == ready


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "a.localhost", "[::1]"])
def test_this_machine(host: str) -> None:
    assert is_loopback(checked(f"http://{host}:1"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "localhost.example", "[2001:db8::1]", "a.example"])
def test_other_machines(host: str) -> None:
    assert not is_loopback(checked(f"http://{host}:1"))
