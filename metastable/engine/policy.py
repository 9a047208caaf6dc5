"""Whose chains run next.

A quarter of the machine's time goes to the requests that came first, the rest to those that have had
least of it so far.  (Least attained service, as in Nuyens and Wierman, "The Foreground-Background
queue: a survey", 2008, with a quarter kept from it.)

- A short request finds every long one ahead in service, so it waits for the segment that is running,
  for other short ones, and for the oldest request's quarter.
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
        return sorted(jobs, key=lambda r: (r.served, r.order))

    def spent(self, seconds: float) -> None:
        """The segment that was ordered last has taken this long."""
        self._owed += (FOR_THE_OLDEST - self._oldest_first) * seconds
