"""No dynamics: the image is classified as it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metastable.dynamics.base import Dynamics, Row


@dataclass(frozen=True, kw_only=True)
class Still(Dynamics):
    """Nothing moves, and there are no chains."""

    name: ClassVar[str] = "none"
    purifies: ClassVar[bool] = False
    random: ClassVar[bool] = False

    @property
    def steps(self) -> int:
        return 0

    @property
    def kind(self) -> None:
        return None

    def row(self, flagged: bool) -> Row:
        return ()
