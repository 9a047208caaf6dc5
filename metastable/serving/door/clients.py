"""Who a client is: its address, also behind proxies that are trusted, and what it has under way."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable

from starlette.types import Scope

from metastable.errors import SettingsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

UNIX = "unix"
"""The name of whoever comes through a Unix socket, also where trusted proxies are named."""


def parse(text: str) -> Address | None:
    """An address, also as `1.2.3.4:80` or `[::1]:80`; None if it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def group(address: Address) -> str:
    """What is counted as one client: an IPv4 address, or the /64 that one IPv6 client has to itself."""
    if address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


class Proxies:
    """Proxies whose X-Forwarded-For is believed: addresses, networks, or `unix`.

    Raises SettingsError for anything else.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        given = list(names)
        self.unix = UNIX in given
        try:
            self._networks = [ipaddress.ip_network(one) for one in given if one != UNIX]
        except ValueError as error:
            raise SettingsError(
                f"a trusted proxy must be an address, a network such as 10.0.0.0/8, or unix: {error}"
            ) from None

    def __contains__(self, address: Address | None) -> bool:
        if address is None:
            return self.unix
        return any(address.version == one.version and address in one for one in self._networks)

    def sent(self, scope: Scope) -> bool:
        """Whether one of them sent this request."""
        return (parse(scope["client"][0]) if scope.get("client") else None) in self

    def client(self, scope: Scope) -> str:
        """The name under which a client without a key is counted.

        That is its address, unless a trusted proxy spoke for it: then the rightmost address of
        X-Forwarded-For that is not trusted.  What stands left of it anybody can write.
        """
        peer = parse(scope["client"][0]) if scope.get("client") else None
        if peer in self:
            written = b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for")
            for text in reversed(written.decode("latin-1").split(",")):
                hop = parse(text.strip())
                if hop is None:
                    break
                peer = hop
                if hop not in self:
                    break
        return UNIX if peer is None else group(peer)


class Counts:
    """How many of something each client has; only clients that have any take room."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def __getitem__(self, client: str) -> int:
        return self._held[client]

    def __len__(self) -> int:
        return len(self._held)

    def add(self, client: str) -> None:
        self._held[client] += 1

    def remove(self, client: str) -> None:
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
