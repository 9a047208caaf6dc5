"""What became of a request: every way it can end has a name, and none is lost.

answer          a verdict that can be read
CODE            the server's own error, such as `overloaded` (docs/http-api.md)
status 503      another status, without an error that can be read
garbage         status 200, but no verdict
refused         no connection
disconnected    the connection broke off
timeout         no whole answer in time
unsent          the client had too many requests under way to send it
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

ANSWER, GARBAGE, REFUSED, DISCONNECTED = "answer", "garbage", "refused", "disconnected"
TIMEOUT, UNSENT = "timeout", "unsent"
MAX_REPLY = 1 << 20  # bytes that are read of a reply
_CODE = re.compile(r"[a-z][a-z_]{0,39}")


@dataclass(frozen=True)
class Reply:
    """What a run needs of an answer (docs/http-api.md); `bare` is the unpurified image's label."""

    label: int
    bare: int
    setting: str
    chains: int
    steps: float
    decided: bool
    late: bool
    score: float
    flagged: bool
    model: str
    version: str
    digest: str
    runner: str
    timings_ms: dict[str, float]


def read(status: int, body: bytes) -> tuple[str, Reply | None]:
    """The outcome's name of a whole reply, and its verdict if it is one.  Never raises."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if status == 200:
        verdict = _verdict(found)
        return (ANSWER, verdict) if verdict else (GARBAGE, None)
    error = found.get("error") if isinstance(found, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and _CODE.fullmatch(code):
        return code, None
    return f"status {status}", None


def _verdict(found: Any) -> Reply | None:
    """The verdict, or None for anything that is not one."""
    try:
        model, anomaly = found["model"], found["anomaly"]
        timings = {_text(name): _real(value) for name, value in found["timings_ms"].items()}
        return Reply(
            label=_whole(found["label"]),
            bare=_whole(found["unpurified"]["label"]),
            setting=_text(found["setting"]),
            chains=_whole(found["chains"]),
            steps=_real(found["steps"]),
            decided=_truth(found["decided"]),
            late=_truth(found["late"]),
            score=_real(anomaly["score"]),
            flagged=_truth(anomaly["flagged"]),
            model=_text(model["name"]),
            version=_text(model["version"]),
            digest=_text(model["digest"]),
            runner=_text(found["runner"]),
            timings_ms=timings,
        )
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError("not a whole number")
    return value


def _real(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError("not a finite number from 0")
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError("not a short text")
    return value
