"""Read Qt resource files (.rcc): trees of named files, some of them compressed.

The format, as Qt's resource compiler writes it, in big-endian numbers: a header with `qres`, a version
and the offsets of three sections.  *Tree*: nodes of 14 bytes (22 from version 2 on, which add a time),
each with the offset of its name and its flags; a folder then has its number of children and the first
one's index, a file its locale and the offset of its data.  *Names*: a length, a hash and UTF-16.
*Data*: a length and the bytes; compressed by zlib they start with their full length.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from metastable.errors import DataError

_COMPRESSED, _FOLDER, _ZSTD = 1, 2, 4
_LARGEST = 2**28
"""Bytes of one file, unpacked."""


def files(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in the bytes of an .rcc file, as (path with /, bytes), in the order of its tree.

    Raises DataError if the bytes are not such a file, or use a compression other than zlib.
    """
    try:
        yield from _files(content)
    except (struct.error, zlib.error, UnicodeDecodeError, RecursionError):
        raise DataError("the .rcc file is damaged: unpack its package again") from None


def _files(content: bytes) -> Iterator[tuple[str, bytes]]:
    magic, version, tree, data, names = struct.unpack_from(">4s4I", content)
    if magic != b"qres" or not 1 <= version <= 3:
        raise DataError("not an .rcc file of version 1 to 3")
    node_bytes = 14 if version == 1 else 22

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", content, names + offset)
        start = names + offset + 6
        return content[start : start + 2 * length].decode("utf-16-be")

    def walk(index: int, folder: str, seen: frozenset[int]) -> Iterator[tuple[str, bytes]]:
        if index in seen:
            raise struct.error
        name, flags, first, second = struct.unpack_from(">IHII", content, tree + index * node_bytes)
        path = folder if index == 0 else f"{folder}{name_at(name)}"
        if flags & _FOLDER:
            for child in range(second, second + first):
                yield from walk(child, f"{path}/" if path else "", seen | {index})
        else:
            yield path, _unpacked(content, data + second, flags)

    yield from walk(0, "", frozenset())


def _unpacked(content: bytes, at: int, flags: int) -> bytes:
    if flags & _ZSTD:
        raise DataError(
            "the .rcc file is compressed by zstd, which is not read: use the tool `rcc --reverse`"
        )
    (length,) = struct.unpack_from(">I", content, at)
    found = content[at + 4 : at + 4 + length]
    if len(found) != length:
        raise struct.error
    if not flags & _COMPRESSED:
        return found
    return zlib.decompressobj().decompress(found[4:], _LARGEST)
