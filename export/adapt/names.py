"""Names of classes as people have them: in lines or JSON, long, repeated, blank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metastable.bundle import files
from metastable.errors import BundleError, DataError

LONGEST = 200
BYTES = 16 * 2**20


def class_names(path: Path | None, classes: int | None) -> list[str]:
    """The names of the classes in the order of the logits: all different, printable, of LONGEST at most.

    Args:
        path: a text file, a name a line; or JSON: a list, or an object from index to name, which may be the
            `id2label` of a Hugging Face configuration.  None: "class 0" and so on.
        classes: how many there are; None for as many as the file names.

    Repeated names are numbered, blank ones named by their class, long ones shortened.  Raises DataError for a
    file that cannot be read, and one with both numbers where there are not as many names as classes.
    """
    if path is None:
        return [f"class {index}" for index in range(classes or 0)]
    try:
        file = path.resolve()  # whoever names a link means what it leads to
        text = files.read(file.parent, file.name, BYTES).decode("utf-8-sig")
    except (BundleError, UnicodeDecodeError):
        raise DataError(
            f"the class names cannot be read: {path.name} is missing, no plain file, no UTF-8 text, or above "
            f"{BYTES} bytes"
        ) from None
    found = _of_json(text, path.name)
    if found is None:
        found = [line.strip() for line in text.rstrip().splitlines()]
        if len(found) != classes:
            found = [line for line in found if line]
    if classes is not None and len(found) != classes:
        raise DataError(f"{path.name} names {len(found)} classes, and the network has {classes}")
    return _distinct(found)


def _of_json(text: str, file: str) -> list[str] | None:
    """The names in a JSON text; None where it is none."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict) and isinstance(found.get("id2label"), dict):
        found = found["id2label"]
    if isinstance(found, dict):
        found = _in_order(found, file)
    return [_name(one) for one in found]


def _in_order(found: dict[str, Any], file: str) -> list[Any]:
    if found and all(isinstance(one, int) for one in found.values()):
        found = {str(index): name for name, index in found.items()}  # from name to index
    indices = [str(index) for index in range(len(found))]
    if set(found) != set(indices):
        raise DataError(f"{file} must be a list of names, or have the keys 0 to {len(found) - 1}")
    return [found[index] for index in indices]


def _name(value: Any) -> str:
    """A name; the last of several (ImageNet's lists have the synset first)."""
    if isinstance(value, list):
        value = value[-1] if value else ""
    return value if isinstance(value, str) else str(value)


def _distinct(names: list[str]) -> list[str]:
    taken, made = set[str](), list[str]()
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        plain = " ".join("".join(c if c.isprintable() else " " for c in name).split()) or f"class {index}"
        plain = plain if len(plain) <= LONGEST else plain[: LONGEST - 3] + "..."
        one = plain
        while one in taken:
            seen[plain] = seen.get(plain, 1) + 1
            end = f" ({seen[plain]})"
            one = plain[: LONGEST - len(end)] + end
        taken.add(one)
        made.append(one)
    return made
