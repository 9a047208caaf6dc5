"""What keeps outcomes of two configurations out of one folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from metastable.errors import DataError


def same_run(path: Path, config: Any) -> None:
    """Keep the dataclass `config` at `path`; raises DataError if another one lies there."""
    text = json.dumps(dataclasses.asdict(config), indent=2, default=list) + "\n"
    if path.exists() and path.read_text() != text:
        raise DataError(f"{path.parent} holds outcomes of another configuration: choose another --work")
    path.write_text(text)


def same_attack(path: Path, attack: str) -> None:
    """Keep an attack's parameters at `path`; raises DataError if others lie there.

    Its own defaults are part of them: outcomes of two versions of an attack must not mix.
    """
    if path.exists() and path.read_text() != attack + "\n":
        raise DataError(f"{path} says that other parameters made these outcomes: choose another --work")
    path.write_text(attack + "\n")
