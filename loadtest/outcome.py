"""What became of a request: every way it can end has a name, and none is lost.

answer          a verdict that can be read
CODE            the server's own error, such as `overloaded` (docs/http-api.md)
status 503      another status, without an error that can be read
garbage         status 200, but no verdict
refused         no connection
disconnected    the connection broke off
timeout         no whole answer in time
unsent          the client had too many requests under way to send it

All but the first and the last are codes of `metastable.client.ServerError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metastable.client import Answer, ServerError
from metastable.client.failure import GARBAGE

__all__ = ["ANSWER", "GARBAGE", "UNSENT", "Reply", "named"]
ANSWER, UNSENT = "answer", "unsent"


def named(error: ServerError) -> str:
    """The outcome's name of a request without an answer; no server can make it one of ours."""
    return f"status {error.status}" if error.code in (ANSWER, UNSENT) else error.code


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
    timings_ms: Mapping[str, float]

    @classmethod
    def of(cls, answer: Answer) -> Reply:
        return cls(
            label=answer.label,
            bare=answer.unpurified.label,
            setting=answer.setting,
            chains=answer.chains,
            steps=answer.steps,
            decided=answer.decided,
            late=answer.late,
            score=answer.anomaly.score,
            flagged=answer.anomaly.flagged,
            model=answer.model.name,
            version=answer.model.version,
            digest=answer.model.digest,
            runner=answer.runner,
            timings_ms=answer.timings_ms,
        )
