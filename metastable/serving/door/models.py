"""What answers behind one door: the versions of a model, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from metastable.serving.backends.base import Backend, Served

NAME = "metastable"
"""What every model can be called, beside its own name."""


class Models:
    """Backends by the version of their model; the first one answers where none is named.

    Args:
        backends: each of another version; their work shares this machine.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.backends = tuple(backends)

    @property
    def ready(self) -> bool:
        """Whether each of them is."""
        return all(one.ready for one in self.backends)

    @property
    def backlog(self) -> float:
        """Seconds of expected work that all of them have left."""
        return sum(one.backlog for one in self.backends)

    @property
    def served(self) -> dict[str, Served]:
        """By version, once they have been ready."""
        return {one.served.version: one.served for one in self.backends}

    def of(self, version: str | None) -> Backend:
        """That of a version; None for the first one, and so is a version that there is not."""
        return next((one for one in self.backends if one.served.version == version), self.backends[0])

    def called(self, name: str, version: str = "") -> list[Backend]:
        """Those that a path of the Open Inference Protocol can mean; an empty version is any."""
        return [
            one
            for one in self.backends
            if name in (NAME, one.served.name) and version in ("", one.served.version)
        ]

    async def close(self, drain: float) -> None:
        """As `Backend.close`, of all of them at once."""
        await asyncio.gather(*(one.close(drain) for one in self.backends))
