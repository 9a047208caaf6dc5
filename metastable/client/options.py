"""What a request asks for beside its image, as headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypedDict

PREFIX = "X-Metastable-"


class Options(TypedDict, total=False):
    """Options of a request; what is left out or None is the server's default (docs/http-api.md).

    setting: a setting of the server.
    top_k: how many classes are listed.
    deadline: seconds from now after which the server gives its best answer so far; nothing is sent again
        later.
    seed: of the chains; most servers do not let clients choose it.
    traceparent: of the trace that the request belongs to (W3C Trace Context), passed on.
    """

    setting: str | None
    top_k: int | None
    deadline: float | None
    seed: int | None
    traceparent: str | None


def headers_of(options: Options, request_id: str | None) -> dict[str, str]:
    """All but the deadline.

    Raises TypeError for an option that there is not, ValueError for a value that can be no header.
    """
    if unknown := set(options) - Options.__annotations__.keys():
        known = ", ".join(Options.__annotations__)
        raise TypeError(f"there is no option {sorted(unknown)[0]!r}: use {known}")
    given: Mapping[str, object] = {
        f"{PREFIX}Setting": options.get("setting"),
        f"{PREFIX}Top-K": options.get("top_k"),
        f"{PREFIX}Seed": options.get("seed"),
        "traceparent": options.get("traceparent"),
        "X-Request-Id": request_id,
    }
    return {name: in_header(name, str(value)) for name, value in given.items() if value is not None}


def in_header(name: str, value: str) -> str:
    """The value of a header; ValueError, which does not repeat it, for one that cannot be."""
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise ValueError(f"{name} must be printable ASCII without spaces around it")
    return value


def deadline_of(options: Options) -> float | None:
    """In seconds; ValueError for what is no number."""
    deadline = options.get("deadline")
    if deadline is not None and not math.isfinite(deadline):
        raise ValueError(f"deadline must be a number of seconds, not {deadline!r}")
    return deadline


def of_deadline(left: float) -> dict[str, str]:
    """The header for a deadline that so many seconds are left to; its range is for the server to judge."""
    return {f"{PREFIX}Deadline-Ms": str(math.ceil(round(1e3 * left, 3)))}
