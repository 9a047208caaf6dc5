"""When a request is sent again: what a server asks for, and otherwise full jitter.

Full jitter is M. Brooker's, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): a wait that is
uniform between 0 and a bound that doubles, so that clients which failed together do not come back together.
"""

from __future__ import annotations

import email.utils
import math
import random
import re
from collections.abc import Callable
from datetime import UTC

from metastable.client.failure import DISCONNECTED, REFUSED, ServerError

LONGEST = 600.0
"""Seconds: what a server asks for beyond it is taken for it."""
FIRST, WIDEST = 0.25, 8.0
"""Seconds: the bound of the first wait, and of every wait, where a server asks for none."""
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")


def seconds_after(value: str | None, date: str | None, now: float) -> float | None:
    """What Retry-After asks for, in [0, LONGEST] seconds; None for none or what cannot be read.

    Args:
        value: of the header: seconds, or a date in one of the three forms of RFC 9110, 5.6.7.
        date: the reply's own Date, from which such a date is counted, because clocks differ.
        now: seconds since 1970, in place of a Date that is missing or cannot be read.
    """
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), LONGEST)
    at = _since_1970(value)
    if at is None:
        return None
    said = None if date is None else _since_1970(date)
    return min(max(at - (now if said is None else said), 0.0), LONGEST)


def _since_1970(date: str) -> float | None:
    try:
        found = email.utils.parsedate_to_datetime(date)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def again(error: ServerError) -> bool:
    """Whether the same request may have an answer later: no answer had begun, or the server has no room."""
    unanswered = error.status == 0 and error.code in (REFUSED, DISCONNECTED)
    return unanswered or error.status in (429, 503)


def wait_of(error: ServerError, attempt: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait after a failure.

    Args:
        attempt: 0 for the first that failed.
        draw: a number in [0, 1).
    """
    jitter = draw() * min(WIDEST, FIRST * 2.0 ** min(attempt, 30))
    if error.retry_after is None:
        return jitter
    # No sooner than asked for, and not all who were told the same at once.
    return error.retry_after + min(jitter, 0.25 * error.retry_after + 0.05)


def ends(timeout: float, deadline: float | None) -> float:
    """Seconds from the start after which nothing is sent again."""
    return timeout if deadline is None else min(timeout, deadline)


def check(retries: int, timeout: float) -> None:
    """ValueError for numbers that cannot be."""
    if type(retries) is not int or retries < 0:
        raise ValueError(f"retries must be a whole number from 0, not {retries!r}")
    if not math.isfinite(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
