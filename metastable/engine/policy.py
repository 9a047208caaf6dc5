"""Whose chains run next.

A quarter of the machine's time goes to the requests that came first, the rest to those that are expected to
end soonest, as in shortest expected remaining processing time (Schrage and Miller 1966, with what is expected
instead of what is known).  A request that has used up what it was expected to need counts as in need of as
much again (`admission.Permit`), so a wrong price costs others little.

- A short request goes before every long one that is not nearly done, so it waits for the segment that is
  running, for other short ones, and for the oldest request's quarter.
- Of equal requests those that have begun go first: under too much work they end one after the other, and not
  all of them late.
- A long request is never starved: however many short ones keep coming, the oldest request gets
  at least a quarter of the time, and every request becomes the oldest.

A segment's batch is filled in this order with chains of the kind of the first request, so requests
behind it ride along where there is room.
"""

from __future__ import annotations

from collections.abc import Iterable

from metastable.engine.job import ActiveJob

FOR_THE_OLDEST = 0.25


class Policy:
    """Remembers how much time the oldest requests are owed."""

    def __init__(self) -> None:
        self._owed = 0.0
        self._oldest_first = False

    def order(self, jobs: Iterable[ActiveJob]) -> list[ActiveJob]:
        """Requests in the order in which the next segment takes chains from them."""
        self._oldest_first = self._owed > 0
        if self._oldest_first:
            return sorted(jobs, key=lambda r: r.order)
        return sorted(jobs, key=lambda r: (r.left, r.order))

    def spent(self, seconds: float) -> None:
        """The segment that was ordered last has taken this long."""
        self._owed += (FOR_THE_OLDEST - self._oldest_first) * seconds
