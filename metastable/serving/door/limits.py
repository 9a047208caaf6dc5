"""What one client may take of the server, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from metastable.errors import SettingsError


@dataclass(frozen=True)
class Limits:
    """Of connections and requests; images have their own (`metastable.images.ImageLimits`).

    Attributes:
        idle_seconds: until the first byte of a request, after connecting or after the last answer.
        head_seconds: from that byte until the head is whole.
        body_seconds, body_rate: a body must be whole `body_seconds` and one second for each `body_rate`
            bytes that have come after its head.  Time in which the application reads nothing does not count.
        write_seconds: that a client may leave an answer unread while more of it waits to be sent.
        linger_seconds, linger_bytes: what is read and dropped after an answer that came before the request
            was whole, so that the client can read the answer.
        head_bytes: of the request line and all header fields.
        chunks: of a body in chunks that may be smaller than 64 bytes on average.
        connections: at once, of all clients.
        spare: connections beyond that, which get livez, readyz, or a refusal.
        client_connections: at once, of one address.  Trusted proxies and Unix sockets are exempt.
        client_requests: under way at once, of one key, or else of one address.
        backlog: connections that the kernel keeps until they are accepted.

    Raises SettingsError for a value that is not positive and finite.
    """

    idle_seconds: float = 30.0
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    body_rate: float = 65536.0
    write_seconds: float = 30.0
    linger_seconds: float = 10.0
    linger_bytes: int = 64 * 2**20
    head_bytes: int = 16384
    chunks: int = 1000
    connections: int = 1024
    spare: int = 64
    client_connections: int = 256
    client_requests: int = 256
    backlog: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type == "int"
            kinds = (int,) if whole else (int, float)
            if type(value) not in kinds or not (math.isfinite(value) and value > 0):
                wanted = "a whole number of at least 1" if whole else "a positive number"
                raise SettingsError(f"limit {field.name} must be {wanted}, not {value!r}")

    @property
    def files(self) -> int:
        """Open files that the connections take at most, with room for those of the process itself."""
        return self.connections + self.spare + 128
