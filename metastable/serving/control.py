"""What the door and a worker of TorchServe say to each other beside the predictions.

A worker listens on the unix socket `<its pid>.sock` in a private folder that the environment names.  Each
side sends one JSON object a line, of at most MOST_BYTES; `id` matches an answer with its request:

    {"id": 1, "ask": "describe"}                    what is served, and how many requests TorchServe may hold
    {"id": 2, "ask": "admit", "setting": "fast"}    a token for a permit that the worker keeps
    {"id": 3, "ask": "release", "token": "..."}     give it back
    {"id": 4, "ask": "cancel", "job": "..."}        the door has no use for this answer any more
    {"id": 5, "ask": "state"}                       backlog, permits out, prices and refusals
    -> {"id": 1, "answer": {...}} or {"id": 2, "refused": {"code": ..., "message": ..., "retry_after": ...}}

A prediction carries the token, the name by which `cancel` knows it, and when it was sent, in headers.  They
count only where the environment names that folder, and then the door alone reaches TorchServe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from metastable.errors import MetastableError, RequestError
from metastable.images import Fit
from metastable.serving.backends.base import Served

FOLDER = "METASTABLE_CONTROL_DIR"
"""The environment's name of the folder of sockets; its mode is 0700."""
PATTERN = "*.sock"
MOST_BYTES = 65_536
PERMIT_HEADER = "X-Metastable-Permit"
UNCOUNTED = "uncounted-"
"""How the names of predictions begin that count as no verdict: no client asked."""
JOB_HEADER = "X-Metastable-Job"
SENT_HEADER = "X-Metastable-Sent"
"""Seconds on `time.monotonic`, which all processes of a machine share: waiting in TorchServe counts too."""


def described(served: Served) -> dict[str, Any]:
    """As JSON has it."""
    return dataclasses.asdict(served)


def served_of(described: Mapping[str, Any]) -> Served:
    """The inverse of `described`; KeyError, TypeError or ValueError for what is none."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list | tuple) else value for name, value in described.items()
    }
    return Served(**fields | {"fit": Fit(**described["fit"])})


def refusal(error: MetastableError) -> dict[str, Any]:
    """An error as it travels."""
    after = error.retry_after if isinstance(error, RequestError) else None
    return {"code": error.code, "message": str(error), "retry_after": after}


def error_of(code: str, message: str, retry_after: float | None) -> MetastableError:
    """The inverse of `refusal`; MetastableError itself where no class has this code."""
    kind = _KINDS.get(code, MetastableError)
    return kind(message, retry_after) if issubclass(kind, RequestError) else kind(message)


def _all(kind: type[MetastableError]) -> Iterator[type[MetastableError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _all(narrower)


# Classes that share their parent's code are not for clients to tell apart.
_KINDS = {kind.code: kind for kind in _all(MetastableError) if "code" in vars(kind)}
