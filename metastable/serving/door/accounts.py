"""What is noted of each request while it is answered.

Nothing of it is a client's text, but for the ids that `identity` has accepted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.types import Scope

from metastable.engine.timeline import Timeline
from metastable.serving.backends.base import Follow

if TYPE_CHECKING:
    from metastable.serving.tracing import Trace


@dataclass
class Account:
    """Of one request.

    Attributes:
        received: when its head was whole, on `time.monotonic`; `whole`, when its body was.
        traceparent: the context that its work belongs to; `trace` are its spans, None without.
        setting: that it asked for, one of the server's.
        status: of the answer; None before it.
        code: `ok`, or that of an error.
        route: the path as the application declares it, such as /v2/models/{name}; None where none was taken.
        bytes_in: of the body, as they came.
        cut: whether its connection was ended with another answer than the application's.
        images: what was answered of each, as `fact` has it.
    """

    received: float
    traceparent: str | None = None
    trace: Trace | None = None
    setting: str | None = None
    status: int | None = None
    code: str | None = None
    route: str | None = None
    bytes_in: int = 0
    whole: float | None = None
    cut: bool = False
    images: list[dict[str, Any]] = field(default_factory=list)
    timelines: list[Timeline] = field(default_factory=list)

    def follow(self) -> Follow:
        """How the next of its images is followed."""
        if self.trace is None:
            return Follow(self.traceparent)
        self.timelines.append(Timeline())
        return Follow(self.traceparent, self.timelines[-1])

    def asked(self, setting: str, codes: Sequence[str]) -> None:
        """Note the setting and what became of its images, or of the request."""
        self.setting = setting
        if len(codes) == 1:
            self.code = codes[0]

    def judged(self, outcomes: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Note each image's code, and the body that the client is told."""
        self.images = [fact(code, body) for code, body in outcomes]

    def refuse(self, status: int, code: str) -> None:
        """Note an answer in the place of the application's."""
        self.status, self.code, self.cut = status, code, True


def of(request: Request) -> Account:
    """Of this request; one that nobody reads where no observer is around."""
    state = request.scope.setdefault("state", {})
    found = state.setdefault("account", Account(time.monotonic()))
    assert isinstance(found, Account)
    return found


def note(scope: Scope, code: str) -> None:
    """Note why a request is refused, if it is observed."""
    account = scope.get("state", {}).get("account")
    if isinstance(account, Account):
        account.code = code


def fact(code: str, body: dict[str, Any]) -> dict[str, Any]:
    """What may be told of one image's answer: how it was found, and not what."""
    if code != "ok":
        return {"code": code}
    shift = body["anomaly"]["shift"]["flagged"]
    return {
        "code": code,
        "chains": body["chains"],
        "steps": body["steps"],
        "decided": body["decided"],
        "late": body["late"],
        "flagged": bool(body["anomaly"]["flagged"] or shift),
        "seconds": {stage: 1e-3 * spent for stage, spent in body["timings_ms"].items() if stage != "total"},
    }


def line(account: Account, method: str, request_id: str | None, ended: float) -> dict[str, Any]:
    """The fields of a request's line; docs/observability.md explains each."""
    seconds = {"total": ended - account.received}
    if account.whole is not None:
        seconds["receive"] = account.whole - account.received
    answered = [one for one in account.images if one["code"] == "ok"]
    for one in answered:
        for stage, spent in one["seconds"].items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    found: dict[str, Any] = {
        "request_id": request_id,
        "trace_id": None if account.traceparent is None else account.traceparent.split("-")[1],
        "method": method,
        "route": account.route,
        "status": account.status,
        "code": account.code,
        "setting": account.setting,
        "bytes_in": account.bytes_in,
        "seconds": {stage: round(spent, 6) for stage, spent in seconds.items()},
    }
    if account.images:
        found |= {"images": len(account.images), "failed": len(account.images) - len(answered)}
    if answered:
        found |= {
            "chains": sum(one["chains"] for one in answered),
            "steps": round(sum(one["steps"] for one in answered) / len(answered), 2),
            **{name: sum(one[name] for one in answered) for name in ("decided", "late", "flagged")},
        }
    return found
