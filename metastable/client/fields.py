"""Fields of a JSON reply, checked: a server may say anything.

All raise ValueError for a value that is not what it should be.
"""

from __future__ import annotations

import math
from typing import Any

_MOST_TEXT = 2000  # characters; names of classes have up to 200


def whole(value: Any) -> int:
    """A whole number in [0, 2^31)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError("not a whole number")
    return value


def number(value: Any) -> float:
    """A finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)


def amount(value: Any) -> float:
    """A finite number from 0."""
    if number(value) < 0:
        raise ValueError("below 0")
    return float(value)


def truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def text(value: Any, most: int = _MOST_TEXT) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError("not a short text")
    return value


def name(value: Any) -> str:
    """A text of at most 200 characters."""
    return text(value, 200)


def items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value
