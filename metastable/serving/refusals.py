"""Errors as every client gets them: a status, a stable code and a sentence, and nothing of what it sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from metastable.errors import MetastableError, RequestError
from metastable.serving.faults import report

INSIDE = "something went wrong inside the server: try again, or tell its operator the request id"


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error.

    Attributes:
        retry_after: seconds, rounded up for the header; None where trying again would not help.
        fields: further header fields, their names in small letters.
    """

    status: int
    code: str
    message: str
    retry_after: float | None = None
    fields: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, error: Exception, *fields: tuple[str, str]) -> Self:
        """What is told of an error; of one that is no RequestError only the log says more."""
        if isinstance(error, RequestError):
            return cls(error.status, error.code, str(error), error.retry_after, fields)
        report("a request failed", error)
        return cls(MetastableError.status, MetastableError.code, INSIDE, None, fields)

    def content(self, request_id: str | None) -> dict[str, Any]:
        """The body, ready for JSON."""
        return {"error": {"code": self.code, "message": self.message}, "request_id": request_id}

    @property
    def headers(self) -> dict[str, str]:
        """Header fields beside those of the body."""
        found = dict(self.fields)
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        return found
