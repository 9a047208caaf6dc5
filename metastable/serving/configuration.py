"""The part `handler` of model-config.yaml: how a server's worker runs.

The defaults stand here and in what they are about (`EngineLimits`, `ImageLimits`); the file repeats them for
those who change one, and a test holds it to them.
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

from metastable.engine.engine import EngineLimits
from metastable.engine.runners import choose
from metastable.errors import SettingsError
from metastable.images import ImageLimits

MOST_THREADS = 4096
MOST_BYTES = 2**30


@dataclass(frozen=True)
class Configuration:
    """Checked options of a worker.

    Attributes:
        runner: what runs the networks, one of `choose.MAKERS`, or `auto`.
        threads: of the worker; 0 is one a core.
        segment_ms: work between two looks at new requests, in milliseconds.
        backlog_seconds: expected work that a request may have before it; one that would have more is refused.
        allow_seed: whether clients may fix the chains' noise.
        max_bytes, max_pixels: of an image.

    Raises SettingsError for a value of another type or outside its range.
    """

    runner: str = choose.AUTO
    threads: int = 0
    segment_ms: float = 1e3 * EngineLimits.segment
    backlog_seconds: float = EngineLimits.backlog
    allow_seed: bool = False
    max_bytes: int = ImageLimits.max_bytes
    max_pixels: int = ImageLimits.max_pixels

    def __post_init__(self) -> None:
        if not isinstance(self.runner, str):
            raise _wrong("runner", f"one of {', '.join((choose.AUTO, *choose.MAKERS))}", self.runner)
        choose.artifact_of(self.runner)
        if type(self.threads) is not int or not 0 <= self.threads <= MOST_THREADS:
            raise _wrong("threads", f"0, for one a core, or up to {MOST_THREADS}", self.threads)
        for name, least, most in (("segment_ms", 1, 10_000), ("backlog_seconds", 1e-3, 1e6)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= most:
                raise _wrong(name, f"a number from {least:g} to {most:g}", value)
        if type(self.allow_seed) is not bool:
            raise _wrong("allow_seed", "true or false", self.allow_seed)
        for name in ("max_bytes", "max_pixels"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MOST_BYTES:
                raise _wrong(name, f"a whole number from 1 to {MOST_BYTES}", value)
        try:
            self.image_limits  # noqa: B018  checks what both are together
        except ValueError as error:
            raise SettingsError(f"handler options: {error}") from None

    @classmethod
    def of(cls, handler: object) -> Configuration:
        """The options of a mapping from YAML, and defaults for what it leaves out or leaves empty.

        Raises SettingsError, in one sentence, for what is no mapping, an unknown name or a wrong value.
        """
        if handler is None:
            return cls()
        if not isinstance(handler, Mapping):
            raise SettingsError(f"handler must be a mapping of options, not {reprlib.repr(handler)}")
        known = [field.name for field in fields(cls)]
        for name in handler:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                meant = f", perhaps {near[0]} is meant" if near else ""
                raise SettingsError(
                    f"there is no handler option {reprlib.repr(name)}{meant}: use {', '.join(known)}"
                )
        return cls(**{str(name): value for name, value in handler.items() if value is not None})

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(self.max_bytes, self.max_pixels)

    @property
    def engine_limits(self) -> EngineLimits:
        segment, backlog = 1e-3 * self.segment_ms, float(self.backlog_seconds)
        return dataclasses.replace(EngineLimits(), segment=segment, backlog=backlog)


def _wrong(name: str, wanted: str, value: object) -> SettingsError:
    return SettingsError(f"handler option {name} must be {wanted}, not {reprlib.repr(value)}")
