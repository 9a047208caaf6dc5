"""How many connections there may be, in all and of one address."""

from __future__ import annotations

from dataclasses import dataclass

from metastable.errors import Overloaded, TooMany
from metastable.serving.door.clients import Counts, Proxies, group, parse
from metastable.serving.door.limits import Limits
from metastable.serving.door.refusals import Refusal


@dataclass(frozen=True)
class Pass:
    """Of one connection.

    Attributes:
        client: under which it is counted; None if it is not.
        refusal: what it is told, unless it asks for livez or readyz; None if it is welcome.
        heard: False if there is no time to hear what it asks.
    """

    client: str | None
    refusal: Refusal | None = None
    heard: bool = True


class Gate:
    """Counts the connections of one server."""

    def __init__(self, limits: Limits, proxies: Proxies) -> None:
        self._limits, self._proxies = limits, proxies
        self._clients = Counts()
        self._welcome = self._spare = 0
        self._full = Refusal.of(Overloaded(f"all {limits.connections} connections are taken", 2.0))
        most = limits.client_connections
        self._many = Refusal.of(TooMany(f"{most} connections of yours are open: use those", 2.0))

    def enter(self, peer: tuple[str, int] | None) -> Pass:
        """`peer`: address and port; None of a Unix socket."""
        address = parse(peer[0]) if peer else None
        client = None if address is None or address in self._proxies else group(address)
        refusal = None
        if client is not None and self._clients[client] >= self._limits.client_connections:
            refusal = self._many
        elif self._welcome >= self._limits.connections:
            refusal = self._full
        if refusal is None:
            self._welcome += 1
            if client is not None:
                self._clients.add(client)
            return Pass(client)
        heard = self._spare < self._limits.spare
        self._spare += heard
        return Pass(None, refusal, heard)

    def leave(self, entry: Pass) -> None:
        if entry.refusal is not None:
            self._spare -= entry.heard
            return
        self._welcome -= 1
        if entry.client is not None:
            self._clients.remove(entry.client)
