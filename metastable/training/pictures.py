"""Take the pictures that a list names out of unpacked packages, to train a denoiser on.

The list is a CSV file with a line a picture: the name it gets, package and version, its file below the folder
that the packages were unpacked into (FILE.rcc:PATH in a Qt resource file), SHA-256, author, licence, source,
and why it is left out, which is empty where it is taken.  `model_store/natural/pictures.csv` is that of the
shipped purifier.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from metastable.errors import DataError
from metastable.training import rcc


@dataclass(frozen=True)
class Listed:
    """A line of the list."""

    name: str
    package: str
    file: str
    sha256: str
    author: str
    licence: str
    source: str
    left_out: str


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument(
        "--packages", type=Path, required=True, help="folder that packages were unpacked into"
    )
    parser.add_argument("--list", type=Path, required=True, help="CSV file of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the pictures that are there; those that are absent or different are named."""
    taken, missing = 0, []
    for one in listed(args.list):
        if one.left_out:
            continue
        data = _bytes(args.packages, one.file)
        if data is None or hashlib.sha256(data).hexdigest() != one.sha256:
            missing.append(one.name)
            print(f"{one.name} is {'absent' if data is None else 'another picture'}: it is of {one.package}")
            continue
        path = args.out / one.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        taken += 1
    if not taken:
        raise DataError(f"{args.packages} has none of the pictures of {args.list}: unpack its packages there")
    print(f"{taken} pictures taken, {len(missing)} missing")
    return {"command": "pictures", "taken": taken, "missing": missing}


def listed(path: Path) -> Iterator[Listed]:
    """The lines of a list; DataError for a file that is none, or a name that leads out of its folder."""
    try:
        with path.open(newline="") as file:
            lines = [Listed(**line) for line in csv.DictReader(file)]
    except (OSError, TypeError, UnicodeDecodeError, csv.Error):
        raise DataError(f"{path} is not a list of pictures: a CSV file with {_columns()}") from None
    for line in lines:
        name = PurePosixPath(line.name)
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise DataError(f"{path}: the name {line.name!r} leads out of the folder")
        yield line


def _columns() -> str:
    return ", ".join(Listed.__dataclass_fields__)


def _bytes(folder: Path, file: str) -> bytes | None:
    outer, _, inner = file.partition(".rcc:")
    if inner:
        return _resources(folder / f"{outer}.rcc").get(inner)
    path = folder / file
    return path.read_bytes() if path.is_file() else None


@lru_cache(maxsize=1)  # a list names the pictures of one file one after another
def _resources(path: Path) -> dict[str, bytes]:
    return dict(rcc.files(path.read_bytes())) if path.is_file() else {}
