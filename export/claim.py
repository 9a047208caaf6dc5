"""The folder that a plan writes, and those beside it: whose they are, before anything in them is touched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metastable.errors import DataError

MARK = "plan.json"


@dataclass
class Claim:
    """A plan's claim to a folder.

    A mark in the folder says whose it is.  It comes first: what was cut off is written again by the same
    plan, and another one leaves it alone.

    Attributes:
        out: the folder.
        said: what makes the plan another one than others.
        key: of the plan and the classifier's bytes; empty until they are known (`take`).
    """

    out: Path
    said: Mapping[str, Any]
    key: str = field(default="", init=False)

    def check(self) -> None:
        """DataError for a folder that no plan like this one wrote, before anything is paid."""
        if self.out.exists() and not self.out.is_dir():
            raise DataError(f"--out {self.out} is a file: name a folder that is to be written")
        if self.out.is_dir() and any(self.out.iterdir()) and self._marked().get("said") != self.said:
            raise DataError(f"--out {self.out} is not empty: name a folder of its own, or remove it")

    def take(self, classifier: str) -> None:
        """Mark the folder as that of this plan and a classifier with this SHA-256.

        Raises DataError where it is of another classifier.
        """
        text = json.dumps([self.said, classifier], sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        if self._marked().get("key", self.key) != self.key:
            raise DataError(f"--out {self.out} is of another classifier: name another folder, or remove it")
        self.out.mkdir(parents=True, exist_ok=True)
        self.mark(self.out)

    def mark(self, folder: Path) -> None:
        """Say in a folder whose it is."""
        mark = {"said": self.said, "key": self.key}
        (folder / MARK).write_text(json.dumps(mark, sort_keys=True) + "\n")

    def beside(self, what: str) -> Path:
        """A folder beside it that nobody else's can be: its name has the key."""
        out = self.out.resolve()
        return out.with_name(f"{out.name}-{what}-{self.key[:12]}")

    def _marked(self) -> dict[str, Any]:
        try:
            found = json.loads((self.out / MARK).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
