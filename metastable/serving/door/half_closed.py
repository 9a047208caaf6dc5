"""Whether a client that has ended its side still wants the answer.

`nc -N` ends its side after the request and waits; a client that was killed ends it as well, and TCP says
the same of both.  A few bytes to the second are answered by a reset.  100 Continue may stand before any
answer of HTTP/1.1 (RFC 9110, 15.2), so it is sent as these bytes.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterator

PROBE_SECONDS = 5.0


def _delays() -> Iterator[float]:
    yield from (0.01, 0.04, 0.2)
    while True:
        yield 1.0


class Watch:
    """Looks again and again whether the other side of a socket is gone, and calls `lost` once if so.

    `probe` is called at once and every few seconds; it sends something if it may.
    """

    def __init__(
        self, transport: asyncio.Transport, probe: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), 0)
        self._probe, self._lost = probe, lost
        self._delays = _delays()
        self._next_probe = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._poll.poll(0):  # POLLHUP and POLLERR are always looked for
            self._timer = None
            return self._lost()
        if self._loop.time() >= self._next_probe:
            self._next_probe += PROBE_SECONDS
            self._probe()
        self._timer = self._loop.call_later(next(self._delays), self._look)
