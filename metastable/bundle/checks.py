"""Checks of values that somebody else wrote: each raises BundleError that names the place."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, NoReturn

from metastable.errors import BundleError

MANIFEST = "bundle.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def fail(where: str, wanted: str) -> NoReturn:
    """Raise BundleError: this place of bundle.json must be what is wanted (values are not repeated)."""
    raise BundleError(f"{MANIFEST}: {where} must be {wanted}")


def strict_json(raw: bytes, what: str, hint: str = "export the bundle again") -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or infinities; BundleError naming `what` otherwise."""
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BundleError(f"{what} is not JSON: {hint}") from None
    if not isinstance(found, dict):
        raise BundleError(f"{what} is not a JSON object: {hint}")
    return found


def short(error: Exception) -> str:
    """An error's text on one line and of bounded length: PyTorch names every weight that does not fit."""
    return " ".join(str(error).split())[:300]


def whole(value: Any, where: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        fail(where, f"a whole number from {low} to {high}")
    return value


def real(value: Any, where: str, low: float, high: float) -> float:
    """A finite number from low to high (the comparison also refuses NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        fail(where, f"a number from {low:g} to {high:g}")
    return float(value)


def flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        fail(where, "true or false")
    return value


def text(value: Any, where: str, longest: int = 200) -> str:
    """Printable text, which leaves out line ends, control characters and halves of surrogate pairs."""
    if not isinstance(value, str) or not 1 <= len(value) <= longest or not value.isprintable():
        fail(where, f"printable text of 1 to {longest} characters")
    return value


def choice(value: Any, where: str, known: Collection[str]) -> str:
    """One of the texts that are known."""
    if not isinstance(value, str) or value not in known:
        fail(where, f"one of {', '.join(known)}")
    return value


def plain_name(value: Any, where: str) -> str:
    """A name that is safe in a path, a metric and a command line: it starts with a letter or a digit."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        fail(where, "1 to 64 letters, digits and . _ + -, a letter or digit first")
    return value


def sha256(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        fail(where, "64 hexadecimal digits")
    return value


def listing(value: Any, where: str, low: int, high: int) -> list[Any]:
    if not isinstance(value, list) or not low <= len(value) <= high:
        fail(where, f"a list of {low}" if low == high else f"a list of {low} to {high}")
    return value


def mapping(value: Any, where: str, keys: set[str]) -> dict[str, Any]:
    """A mapping with exactly these keys."""
    if not isinstance(value, dict) or set(value) != keys:
        fail(where, f"a mapping with exactly the keys {sorted(keys)}")
    return value


def table(value: Any, where: str, longest: int) -> dict[str, Any]:
    """A mapping with at most `longest` keys of printable text."""
    if not isinstance(value, dict) or len(value) > longest:
        fail(where, f"a mapping of at most {longest} keys")
    for key in value:
        text(key, f"a key of {where}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
