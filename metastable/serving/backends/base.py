"""What the door asks of whatever answers behind it.

    async with await backend.admit("fast") as room:     # or it says when to try again
        image = ...                                     # decoded only now
        judged = await backend.ask(Question(...), room)

Cancelling the task that awaits `ask` gives the chains up and their room back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from metastable.engine.timeline import Timeline
from metastable.images import DecodedImage, Fit
from metastable.serving.options import RequestOptions

if TYPE_CHECKING:
    from metastable.serving.metrics import Counted


@dataclass(frozen=True)
class Served:
    """The model that answers.

    Attributes:
        shape: (C, H, W) of its images, and `fit` how another one becomes such an image.
        classes: their names, by index.
        settings: names, and `default` the one that is taken where none is asked for.
        allow_seed: whether clients may set the seed.
        runner: what runs the networks.
    """

    name: str
    version: str
    digest: str
    shape: tuple[int, int, int]
    fit: Fit
    classes: tuple[str, ...]
    settings: tuple[str, ...]
    default: str
    allow_seed: bool
    runner: str


class Follow(NamedTuple):
    """How the way of one image is followed.

    Attributes:
        traceparent: the W3C trace context of its work, for others that do some of it; None for none.
        timeline: where it is noted when what was done, on `time.monotonic`; None for nowhere.
    """

    traceparent: str | None = None
    timeline: Timeline | None = None

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Note what this takes as a stage, also where it raises."""
        began = time.monotonic()
        try:
            yield
        finally:
            if self.timeline is not None:
                self.timeline.add(stage, began, time.monotonic())


UNFOLLOWED = Follow()


@dataclass(frozen=True, eq=False)
class Question:
    """One image that was decoded, with the options that came with it.

    Attributes:
        id: unique among those that are asked.
        deadline: on `time.monotonic`; None for none.  The `deadline_ms` of the options has become this.
        counted: whether a client asks, so that metrics of verdicts count it.
    """

    id: str
    image: DecodedImage
    options: RequestOptions
    deadline: float | None
    follow: Follow = UNFOLLOWED
    counted: bool = True


@dataclass(frozen=True)
class Judged:
    """What is said of an image.

    Attributes:
        body: the verdict as docs/http-api.md describes it, without `request_id` and `timings_ms`.
        seconds: of stages behind the door: `anomaly`, `queue`, `purify`, `classify`.
        counted: what metrics count of it, where what answered has none of its own.
    """

    body: dict[str, Any]
    seconds: dict[str, float]
    counted: Counted | None = None


class Room(Protocol):
    """Kept for one image; leaving its `async with` gives it back, if no answer took it over."""

    async def __aenter__(self) -> Room: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """See the module.  All of it is for one event loop."""

    @property
    def served(self) -> Served:
        """Known once the backend has been ready, and asked for only then."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a question would be answered now."""
        ...

    @property
    def backlog(self) -> float:
        """Seconds of expected work that is left to do, as far as is known without asking; 0 when idle."""
        ...

    def check_room(self, setting: str) -> None:
        """Whether an image of this setting would be admitted now, as far as is known without asking.

        It costs nothing, so that a body need not be read in vain.  Raises what `admit` raises.
        """
        ...

    async def admit(self, setting: str) -> Room:
        """Room for one image of a known setting.

        Raises Overloaded (which says after how many seconds to try again), Draining, or Unavailable while
        what answers is being started.
        """
        ...

    async def ask(self, question: Question, room: Room) -> Judged:
        """The answer; the room is its own from now on.

        Raises DeadlineExceeded, Overloaded, Draining, Unavailable where what answers broke off, and
        MetastableError for a fault inside.
        """
        ...

    async def close(self, drain: float) -> None:
        """Take no more, finish what is under way within `drain` seconds, end."""
        ...
