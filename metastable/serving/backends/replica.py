"""One engine that doors ask from other processes and machines: what it is sent, and what it answers.

Deadlines travel as seconds that are left, because machines share no clock.  Errors travel as
`metastable.serving.control` writes them: an exception would bring a trace of this machine with it.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from metastable.bundle import Bundle
from metastable.engine.engine import LATE, EngineLimits
from metastable.engine.inspection import Raw
from metastable.engine.runners import Runner
from metastable.errors import DeadlineExceeded, MetastableError, Unavailable
from metastable.images import DecodedImage
from metastable.serving.backends.base import Follow, Judged, Question
from metastable.serving.backends.exchange import pixels_of, samples_of
from metastable.serving.backends.local import Local
from metastable.serving.control import described, refusal
from metastable.serving.options import RequestOptions

log = logging.getLogger(__name__)

OTHER = "what is served is being exchanged: try again"
BROKEN = "the replica failed at this request: see its log"


class Part(NamedTuple):
    """Chains `first` to `end`, without that, of a question; `decides` and `raw` as of `Local.part`."""

    first: int
    end: int
    decides: bool
    raw: Raw | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """A question as it travels.

    Attributes:
        digest: of the bundle that is meant.
        samples: of its image, see `exchange.samples_of`.
        image: what was done to get there: all that a DecodedImage says, but for its pixels.
        left: seconds until its deadline; None for none.
        part: which of its chains; None for all, and a verdict.
    """

    id: str
    digest: str
    samples: np.ndarray[Any, Any]
    image: dict[str, Any]
    options: RequestOptions
    left: float | None
    traceparent: str | None
    part: Part | None = None

    @classmethod
    def of(cls, question: Question, digest: str, part: Part | None = None) -> Asked:
        """Raises DeadlineExceeded where no time is left."""
        left = None if question.deadline is None else question.deadline - time.monotonic()
        if left is not None and left <= 0:
            raise DeadlineExceeded(LATE)
        image = {
            field.name: getattr(question.image, field.name)
            for field in dataclasses.fields(DecodedImage)
            if field.name != "pixels"
        }
        # An id of its own: a replica may get two parts of one question, or a part again.
        return cls(
            secrets.token_hex(16),
            digest,
            samples_of(question.image.pixels),
            image,
            question.options,
            left,
            question.follow.traceparent,
            part,
        )

    def question(self) -> Question:
        """The question again, here."""
        deadline = None if self.left is None else time.monotonic() + self.left
        image = DecodedImage(pixels=pixels_of(self.samples), **self.image)
        return Question(self.id, image, self.options, deadline, Follow(self.traceparent))


@dataclass(frozen=True, eq=False)
class Piece:
    """What some of a question's chains say.

    Attributes:
        raw: the image as it came; the look at it took `looked` seconds.
        outputs: float32 [n, classes], what each chain says, as it is averaged; steps: int64 [n].
        decided: whether they settle the label; late: whether the deadline cut them short.
        redrawn, seconds: as of `Answer`.
    """

    raw: Raw
    looked: float
    outputs: Tensor
    steps: Tensor
    decided: bool
    late: bool
    redrawn: int
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Told:
    """What came of a question: a verdict, a piece, or an error as `control.refusal` writes it."""

    judged: Judged | None = None
    piece: Piece | None = None
    refused: dict[str, Any] | None = None


class Replica:
    """An engine with a name.  All of it is for one event loop, but for `state`.

    Args:
        name: unique in its cluster.
        bundle, runner, allow_seed, limits, sizes: as of `Local`.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        runner: Runner,
        *,
        allow_seed: bool = False,
        limits: EngineLimits | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.name = name
        self._local = Local(bundle, runner, None, allow_seed=allow_seed, limits=limits, sizes=sizes)

    async def ask(self, asked: Asked) -> Told:
        """What comes of a question; it raises nothing, and a cancelled one gives its chains up."""
        try:
            question = asked.question()
            if asked.digest != self._local.served.digest:
                raise Unavailable(OTHER)
            if asked.part is not None:
                return Told(piece=await self._piece(question, asked.part))
            async with await self._local.admit(question.options.setting) as room:
                return Told(judged=await self._local.ask(question, room))
        except MetastableError as error:
            return Told(refused=refusal(error))
        except Exception as error:
            log.error("a request failed: %s", type(error).__name__, exc_info=error)
            return Told(refused=refusal(MetastableError(BROKEN)))

    async def _piece(self, question: Question, part: Part) -> Piece:
        chains = range(part.first, part.end)
        raw, looked, answer = await self._local.part(question, chains, decides=part.decides, raw=part.raw)
        result = answer.result
        return Piece(
            raw,
            looked,
            result.outputs[0].cpu(),
            result.steps[0],
            answer.decision.decided,
            answer.late,
            answer.redrawn,
            answer.seconds,
        )

    def state(self) -> dict[str, Any]:
        """What a door needs to know of it: what is served, how much can wait, how it stands."""
        backlog, chains = self._local.capacity
        return {
            "name": self.name,
            "served": described(self._local.served),
            "capacity": {"backlog": backlog, "chains": chains},
            "chains": self._local.chains,
            **self._local.state(),
        }

    @property
    def backlog(self) -> float:
        """Seconds of expected work that is left to do."""
        return self._local.backlog

    @property
    def alive(self) -> bool:
        """Whether its engine's thread is there."""
        return self._local.alive

    async def close(self, drain: float) -> None:
        """As of `Backend`."""
        await self._local.close(drain)
