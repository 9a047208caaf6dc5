"""A client that costs little: what it computes, a server on the same machine cannot.

It asks one question again and again, over connections that it keeps; of an answer it reads the status.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h11

from metastable.errors import MetastableError

FAILED = "no answer"
PATIENCE = 120.0
_READ = 65_536


@dataclass(frozen=True)
class Answer:
    """When it came, on `time.monotonic`, after how many seconds, and its status."""

    at: float
    seconds: float
    status: str

    @property
    def good(self) -> bool:
        return self.status == "200"


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    state: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))


class Asker:
    """See the module.

    Args:
        url: that is asked, by POST; `body` and `headers` of every request.
        local: the address that requests come from.
        socket: a unix socket that is asked in place of the url's host.
        patience: seconds that an answer may take.
    """

    def __init__(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        local: str = "127.0.0.1",
        socket: Path | None = None,
        patience: float = PATIENCE,
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._local, self._socket = parts.hostname, parts.port, local, socket
        given = {"Host": parts.netloc, "Content-Length": str(len(body)), **headers}
        target = parts._replace(scheme="", netloc="").geturl()
        self._request = h11.Request(method="POST", target=target, headers=list(given.items()))
        self._body, self._patience = h11.Data(data=body), patience
        self._kept: list[_Connection] = []

    async def seconds(self) -> float:
        """Of one request; raises MetastableError if it gets no verdict."""
        answer = await self()
        if not answer.good:
            raise MetastableError(f"a request of the benchmark got {answer.status}")
        return answer.seconds

    async def __call__(self) -> Answer:
        """What became of one request."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):
                status = str(await self._ask())
        except (OSError, TimeoutError, h11.RemoteProtocolError):
            status = FAILED
        return Answer(time.monotonic(), time.monotonic() - begun, status)

    async def close(self) -> None:
        """Close the connections that were kept."""
        while self._kept:
            writer = self._kept.pop().writer
            writer.close()
            with contextlib.suppress(OSError):  # of one that was reset
                await writer.wait_closed()

    async def _ask(self) -> int:
        connection = await self._connection()
        try:
            status = await self._exchange(connection)
            connection.state.start_next_cycle()
        except h11.LocalProtocolError:  # the server closes it
            connection.writer.close()
        except BaseException:
            connection.writer.close()
            raise
        else:
            self._kept.append(connection)
        return status

    async def _connection(self) -> _Connection:
        while self._kept:
            kept = self._kept.pop()
            if not kept.reader.at_eof():
                return kept
            kept.writer.close()
        if self._socket is not None:
            return _Connection(*await asyncio.open_unix_connection(self._socket))
        return _Connection(
            *await asyncio.open_connection(self._host, self._port, local_addr=(self._local, 0))
        )

    async def _exchange(self, connection: _Connection) -> int:
        state, status = connection.state, 0
        for event in (self._request, self._body, h11.EndOfMessage()):
            connection.writer.write(state.send(event) or b"")
        await connection.writer.drain()
        while True:
            found = state.next_event()
            if found is h11.NEED_DATA:
                state.receive_data(await connection.reader.read(_READ))
            elif isinstance(found, h11.Response):
                status = found.status_code
            elif isinstance(found, h11.EndOfMessage):
                return status
