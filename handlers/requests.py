"""A request on its way through the service, and its response, in terms that know no TorchServe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from handlers.door import Claim
from metastable.engine.admission import Permit
from metastable.engine.inspection import Raw
from metastable.images import DecodedImage
from metastable.serving.options import RequestOptions


@dataclass(frozen=True)
class Request:
    """One request as the front end received it; its id is its own while it has no response."""

    id: str
    headers: Mapping[str, str]
    row: Mapping[str, object]


@dataclass(frozen=True)
class Response:
    """Status, JSON body and further headers."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class New:
    """A request whose options are read, and whose turn has not come.

    `received` is when the door sent it, if one did.
    """

    id: str
    data: bytes
    options: RequestOptions
    received: float
    claim: Claim

    @property
    def deadline(self) -> float | None:
        """On the service's clock."""
        limit = self.options.deadline_ms
        return None if limit is None else self.received + 1e-3 * limit


@dataclass
class Held:
    """A request on its way: what was decoded, and seconds spent by stage."""

    id: str
    options: RequestOptions
    permit: Permit
    job: str | None
    image: DecodedImage
    received: float
    deadline: float | None
    seconds: dict[str, float]
    raw: Raw = field(init=False)  # from `_inspect`, before anything else is done with it
