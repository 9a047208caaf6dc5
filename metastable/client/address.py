"""Where a server is, checked, and what follows from that."""

from __future__ import annotations

import ipaddress
import re

import httpx

from metastable.errors import MetastableError

HERE = "http://127.0.0.1:8080"
PATH = "/classify"
"""Of predictions, where an address has no path."""
_KNOWN = re.compile(r"/(?:classify|predictions/[^/]+(?:/[^/]+)?)/?$")


def checked(url: str) -> httpx.URL:
    """The address; MetastableError unless it is http(s) with a host, and holds no password."""
    if "@" in url.partition("?")[0]:
        raise MetastableError("an address with a user or a password is not taken: give a key in its place")
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise MetastableError(f"{url!r} is no address: {error}") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise MetastableError(f"{url!r} is no http address with a host")
    return found


def of_predictions(url: httpx.URL) -> httpx.URL:
    """An address as it is, or with the path of predictions where it has none."""
    return url.copy_with(path=PATH) if url.path in ("", "/") else url


def beside(url: httpx.URL, path: str) -> httpx.URL:
    """Another path of the server whose predictions are at `url`, behind the same prefix."""
    prefix, found = _KNOWN.subn("", url.path)
    return httpx.URL(url, path=(prefix if found else "") + path, query=None, fragment=None)


def is_loopback(url: httpx.URL) -> bool:
    """Whether the host is this machine by its name or number; nothing is looked up."""
    host = url.host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
