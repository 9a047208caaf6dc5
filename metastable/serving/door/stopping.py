"""How a server is asked to stop, and how what it serves learns of it."""

from __future__ import annotations

import time


class Stop:
    """One for each run of a server; the application looks at `draining` for its readiness.

    Attributes:
        since: on `time.monotonic`, when a stop was asked for; None before that.
        at_once: whether it was asked for twice.
        grace: whether the listener stays open for a while, so that proxies see that it is not ready.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.at_once = False
        self.grace = True

    @property
    def draining(self) -> bool:
        return self.since is not None

    def ask(self, grace: bool = True) -> None:
        """Stop; the second time, at once.  From any thread, and from a handler of signals."""
        if self.since is None:
            self.grace = grace
            self.since = time.monotonic()
        else:
            self.at_once = True

    def passed(self) -> float:
        """Seconds since a stop was asked for; 0 before that."""
        return 0.0 if self.since is None else time.monotonic() - self.since
