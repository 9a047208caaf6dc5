"""Labels of pictures: a CSV file of file names and classes.

    file,label
    cats/one.png,cat
    two.jpg,0

The header may be absent where there are no other columns; with it, columns besides `file` (or `filename`) and
`label` (or `class`) are left alone.  File names are relative to the folder of the pictures, with slashes.  A
label is the name of a class, or else its number from 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metastable import reading
from metastable.errors import DataError

FILES, CLASSES = ("file", "filename", "file_name"), ("label", "class")
"""Names that a header may give the two columns: the first that is there counts."""
OTHERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What else separates the fields of such files."""
MOST_BYTES = 256 * 2**20
MOST_CLASSES = 100_000
"""Numbers of classes whose names nobody gives end here."""


class Label(NamedTuple):
    """The number of a class, and the line that says so."""

    number: int
    line: int


@dataclass(frozen=True)
class Labels:
    """Labels by file name, and the names of the classes in the order of their numbers.

    `numbered` says that all labels were numbers, and nobody named the classes: their names are numbers too.
    """

    by_file: Mapping[str, Label]
    classes: tuple[str, ...]
    numbered: bool = False


def read(path: Path, classes: Sequence[str] = ()) -> Labels:
    """The labels in a CSV file; DataError, which names the line, for a file that is none.

    Args:
        classes: names in the order of their numbers.  Without any, labels that are all whole numbers are
            numbers, and others names, numbered in alphabetical order.
    """
    try:
        text = reading.read(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: it is not UTF-8: save the file as UTF-8") from None
    return parse(text, str(path), classes)


def parse(text: str, source: str, classes: Sequence[str] = ()) -> Labels:
    """What `read` says, of the text of a file; `source` is what errors call it."""
    found: dict[str, tuple[str, int]] = {}
    for line, file, label in _rows(text, source):
        name = _name(file, f"{source}, line {line}")
        if not label:
            raise DataError(f"{source}, line {line}: {name} has no label")
        if name in found:
            raise DataError(f"{source}, line {line}: {name} stands on line {found[name][1]} already")
        found[name] = label, line
    if not found:
        raise DataError(f"{source} names no picture: it needs lines of a file name, a comma and a label")
    known = tuple(classes) or _unnamed([label for label, _ in found.values()], source)
    numbered = not classes and all(_is_number(label) for label, _ in found.values())
    numbers: dict[str, list[int]] = {}
    for number, one in enumerate(known):
        numbers.setdefault(one, []).append(number)
    return Labels(
        {
            name: Label(_number(label, numbers, len(known), f"{source}, line {line}", hint(name)), line)
            for name, (label, line) in found.items()
        },
        known,
        numbered,
    )


def _rows(text: str, source: str) -> list[tuple[int, str, str]]:
    """Line number, file and label of every row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[tuple[int, str, str]] = []
    columns, width, first = (0, 1), 2, True
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if first and (header := _header(cells)):
                columns, width = header, len(cells)
            elif len(cells) == 1 and (other := next((sign for sign in OTHERS if sign in cells[0]), "")):
                raise DataError(
                    f"{source}, line {reader.line_num}: {OTHERS[other]} separate its fields: write commas"
                )
            elif len(cells) != width:
                raise DataError(
                    f"{source}, line {reader.line_num}: there are {len(cells)} fields, not {width}; more "
                    "than a file and a label need a header that names the columns file and label"
                )
            else:
                found.append((reader.line_num, cells[columns[0]], cells[columns[1]]))
            first = False
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num}: {error}") from None
    return found


def _header(cells: Sequence[str]) -> tuple[int, int] | None:
    """The columns of files and of labels, if the cells name them: no picture is called so."""
    names = [cell.lower() for cell in cells]
    file, label = (next((name for name in some if name in names), "") for some in (FILES, CLASSES))
    return (names.index(file), names.index(label)) if file and label else None


def _name(file: str, where: str) -> str:
    path = PurePosixPath(file)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in file:
        raise DataError(f"{where}: {file!r} is not the name of a file in the folder of pictures")
    return str(path)


def _unnamed(labels: Sequence[str], source: str) -> tuple[str, ...]:
    """The classes of labels without a list of names."""
    if not all(map(_is_number, labels)):
        return tuple(sorted(set(labels)))
    most = max(map(int, labels))
    if most >= MOST_CLASSES:
        raise DataError(f"{source} has the label {most}, and numbers of classes end at {MOST_CLASSES - 1}")
    return tuple(map(str, range(most + 1)))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def hint(name: str) -> str:
    """What an error adds where a file has the name of a column, as in a header that is not understood."""
    return "" if PurePosixPath(name).suffix else "; if this is a header, name its columns file and label"


def _number(label: str, numbers: Mapping[str, list[int]], count: int, where: str, hint: str) -> int:
    if named := numbers.get(label):
        if len(named) > 1:
            raise DataError(f"{where}: {label!r} is the name of {len(named)} classes: give a number, {named}")
        return named[0]
    if _is_number(label) and int(label) < count:
        return int(label)
    raise DataError(
        f"{where}: {label!r} is no class, neither a name nor a number from 0 to {count - 1}{hint}"
    )
