from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastable.client.failure import DISCONNECTED, GARBAGE, REFUSED, TIMEOUT, ServerError
from metastable.client.retrying import FIRST, LONGEST, WIDEST, again, check, ends, seconds_after, wait_of

NOW = datetime(1994, 11, 6, 8, 49, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        ("999999999999", LONGEST),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 7.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 7.0),
        ("Sun Nov  6 08:49:37 1994", 7.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Sun, 06 Nov 2094 08:49:37 GMT", LONGEST),
    ],
)
def test_every_form_of_retry_after_is_read(value: str, seconds: float) -> None:
    assert seconds_after(value, None, NOW.timestamp()) == seconds


@pytest.mark.parametrize("value", [None, "", "soon", "-1", "1e9", "nan", "0x10", "٣", "1,2", "99 Nov"])
def test_what_cannot_be_read_asks_for_nothing(value: str | None) -> None:
    assert seconds_after(value, None, NOW.timestamp()) is None


def test_a_date_is_counted_from_the_servers_own() -> None:
    value, date = "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:36 GMT"
    assert seconds_after(value, date, 0.0) == 1.0
    assert seconds_after(value, "rubbish", NOW.timestamp()) == 7.0


@given(st.text(max_size=40), st.text(max_size=40) | st.none())
def test_nothing_raises_and_all_is_bounded(value: str, date: str | None) -> None:
    found = seconds_after(value, date, NOW.timestamp())
    assert found is None or 0 <= found <= LONGEST


@given(st.integers(0, 900))
def test_dates_go_there_and_back(seconds: int) -> None:
    value = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert seconds_after(value, None, NOW.timestamp()) == min(seconds, LONGEST)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        (REFUSED, 0, True),
        (DISCONNECTED, 0, True),
        (DISCONNECTED, 200, False),
        (TIMEOUT, 0, False),
        (GARBAGE, 0, False),
        (GARBAGE, 200, False),
        ("overloaded", 503, True),
        ("status 503", 503, True),
        ("too_many", 429, True),
        ("invalid_image", 400, False),
        ("not_authorized", 401, False),
        ("too_slow", 408, False),
        ("invalid_option", 422, False),
        ("internal", 500, False),
        ("deadline_exceeded", 504, False),
    ],
)
def test_what_is_sent_again(code: str, status: int, expected: bool) -> None:
    assert again(ServerError("x", code, status)) == expected


@given(st.integers(0, 2000), st.floats(0, 1, exclude_max=True))
def test_waits_are_jittered_up_to_a_bound_that_doubles(attempt: int, drawn: float) -> None:
    wait = wait_of(ServerError("x", REFUSED), attempt, lambda: drawn)
    assert wait == drawn * min(FIRST * 2 ** min(attempt, 10), WIDEST)


@given(st.integers(0, 50), st.floats(0, 1, exclude_max=True), st.floats(0, LONGEST))
def test_nobody_comes_sooner_than_asked(attempt: int, drawn: float, asked: float) -> None:
    error = ServerError("x", "overloaded", 503, retry_after=asked)
    assert asked <= wait_of(error, attempt, lambda: drawn) <= asked + WIDEST


def test_a_deadline_ends_it_before_the_timeout() -> None:
    assert (ends(9, None), ends(9, 2), ends(2, 9)) == (9, 2, 2)


@pytest.mark.parametrize(("retries", "timeout"), [(-1, 1), (1.5, 1), (True, 1), (1, 0), (1, float("inf"))])
def test_numbers_that_cannot_be_are_refused(retries: int, timeout: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        check(retries, timeout)
