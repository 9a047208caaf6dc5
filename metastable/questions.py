"""What a caller of the library asks beside the images, checked: setting, deadline and seeds.

And how long is waited for answers, and what becomes of those that nobody waits for.
"""

from __future__ import annotations

import os
import reprlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from metastable import noise
from metastable.batches import Images, batch_of
from metastable.bundle import Bundle
from metastable.engine.engine import LATE
from metastable.engine.inspection import Raw
from metastable.engine.job import Job
from metastable.errors import DeadlineExceeded, InvalidOption
from metastable.settings import Setting

T = TypeVar("T")
LONGEST = 1e9  # seconds of a deadline


@dataclass(frozen=True)
class Terms:
    """What is asked for, whatever the images are: the setting, and the deadline on the engine's clock."""

    setting: Setting
    deadline: float | None


@dataclass(frozen=True)
class Question:
    """What was asked, checked: images [N, C, H, W], and a seed for each."""

    images: Tensor
    seeds: list[int]
    terms: Terms

    def jobs(self, raws: Sequence[Raw], ids: Iterator[int]) -> list[Job]:
        """A job for each image, from the look at it before."""
        setting, deadline = self.terms.setting, self.terms.deadline
        return [
            Job(str(next(ids)), image, setting, seed, flagged=raw.flagged, deadline=deadline)
            for image, seed, raw in zip(self.images, self.seeds, raws, strict=True)
        ]


def terms_of(bundle: Bundle, setting: str | None, seconds: float | None, now: float) -> Terms:
    """The terms of a setting's name and a deadline in seconds from `now`; raises InvalidOption for others."""
    return Terms(setting_of(bundle, setting), deadline_after(now, seconds))


def question_of(images: Images, bundle: Bundle, terms: Terms, seeds: Sequence[int] | None) -> Question:
    """Images read and checked, for a bundle: of its shape, files fitted to it.

    Raises what `batch_of` and `seeds_for` raise.
    """
    batch = batch_of(images, bundle.shape, bundle.fit)
    return Question(batch, seeds_for(len(batch), seeds), terms)


def check_names(bundle: object, settings: object) -> None:
    """InvalidOption for a bundle that is no name or path, or settings that are no list of names."""
    if not isinstance(bundle, str | os.PathLike) or not str(bundle):
        raise InvalidOption(f"bundle must be a shipped bundle's name or a path, not {reprlib.repr(bundle)}")
    if isinstance(settings, str):
        raise InvalidOption(f"settings must be a list of names: ({settings!r},)")
    if not isinstance(settings, Sequence) or not all(isinstance(name, str) for name in settings):
        raise InvalidOption(f"settings must be a list of names, not {reprlib.repr(settings)}")


def left(deadline: float | None) -> float | None:
    """Seconds until a deadline on the engine's clock."""
    return None if deadline is None else max(deadline - time.perf_counter(), 0.0)


@contextmanager
def late_is_said() -> Iterator[None]:
    """DeadlineExceeded where time ran out while images were looked at: then nothing was purified."""
    try:
        yield
    except TimeoutError:
        raise DeadlineExceeded(LATE) from None


def in_time(look: Future[list[Raw]], deadline: float | None) -> list[Raw]:
    """What was seen; DeadlineExceeded if it takes longer."""
    with late_is_said():
        return look.result(left(deadline))


@contextmanager
def cared_for(futures: Sequence[Future[T]]) -> Iterator[Sequence[Future[T]]]:
    """Afterwards those that have not ended are cancelled: whoever asked has had an error, or has gone."""
    try:
        yield futures
    finally:
        for future in futures:
            future.cancel()


def setting_of(bundle: Bundle, name: str | None) -> Setting:
    """The setting of a name, the bundle's default for None; InvalidOption for one that it does not have."""
    known = bundle.settings.names
    chosen = bundle.settings.default if name is None else name
    if chosen not in known:
        raise InvalidOption(f"setting must be one of {', '.join(known)}, not {reprlib.repr(chosen)}")
    return bundle.settings[chosen]


def deadline_after(now: float, seconds: float | None) -> float | None:
    """When `seconds` from `now` will be; InvalidOption for what is no positive number of seconds."""
    if seconds is None:
        return None
    timed = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not (timed and 0 < seconds <= LONGEST):
        raise InvalidOption(f"the deadline must be a positive number of seconds, not {reprlib.repr(seconds)}")
    return now + seconds


def seeds_for(count: int, seeds: Sequence[int] | None) -> list[int]:
    """A seed for each of `count` images: those given, or secret ones.

    Raises InvalidOption for what is no list of whole numbers in [0, 2^128), or another number of them.
    """
    if seeds is None:
        return [noise.secret_seed() for _ in range(count)]
    given = _whole(seeds)
    if len(given) != count:
        raise InvalidOption(f"there are {len(given)} seeds for {count} images: give one for each")
    if not all(0 <= seed < 1 << noise.SEED_BITS for seed in given):
        raise InvalidOption(f"every seed must lie in [0, 2^{noise.SEED_BITS})")
    return given


def _whole(seeds: object) -> list[int]:
    found = list(seeds) if isinstance(seeds, Sequence | np.ndarray) and not isinstance(seeds, str) else None
    whole = (int, np.integer)
    if found is None or not all(isinstance(one, whole) and not isinstance(one, bool) for one in found):
        raise InvalidOption(f"seeds must be whole numbers, one an image, not {reprlib.repr(seeds)}")
    return [int(one) for one in found]
