"""What accuracies are on images that nobody labelled: agreement with the bare classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metastable.datasets.folder import AGREEMENT, CLASSIFIER


def word(accuracy_is: str | None) -> str:
    """What accuracies are called: agreement, where all of them are that."""
    return "agreement" if accuracy_is == AGREEMENT else "accuracy"


def accuracy_of(sets: Sequence[Mapping[str, Any]]) -> str | None:
    """What the accuracies of these sets, as a report describes them, are; None where all have labels."""
    said = [one.get("data") for one in sets]
    bare = [isinstance(data, Mapping) and data.get("labels") == CLASSIFIER for data in said]
    if not any(bare):
        return None
    names = [str(one["name"]) for one, alone in zip(sets, bare, strict=True) if alone]
    return AGREEMENT if all(bare) else f"{AGREEMENT} on {', '.join(names)}, where nobody gave labels"
