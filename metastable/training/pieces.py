"""Large files in pieces: machines that are lent hand back small files only.

A file of at most LIMIT bytes is itself.  A larger one is cut into `NAME.DIGEST.I-of-N`; the digest is that
of the whole, so pieces of two writings are never joined, and a writing that was cut short does not count.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

LIMIT = 15 * 2**20


def place(part: Path, path: Path, limit: int = LIMIT) -> None:
    """Move the finished file `part` to `path`, in pieces of at most `limit` bytes if it is larger.

    Until everything is in its place, what `path` held before can still be read; after that it is gone.
    """
    earlier = [path, *_pieces(path)]
    if part.stat().st_size <= limit:
        part.replace(path)
        made = [path]
    else:
        content = part.read_bytes()
        count = -(-len(content) // limit)
        made = [path.with_name(f"{path.name}.{_digest(content)}.{i + 1}-of-{count}") for i in range(count)]
        for i, piece in enumerate(made):
            piece.write_bytes(content[i * limit : (i + 1) * limit])
        part.unlink()
    for old in earlier:
        if old not in made:
            old.unlink(missing_ok=True)


def read(path: Path) -> bytes | None:
    """What `place` put at `path`, whole or from its pieces; None if neither is there and complete."""
    sets: dict[tuple[str, int], dict[int, Path]] = {}
    for piece in _pieces(path):
        digest, number, count = _named(path, piece)
        sets.setdefault((digest, count), {})[number] = piece
    for (digest, count), found in sets.items():
        if len(found) == count:
            content = b"".join(found[i + 1].read_bytes() for i in range(count))
            if _digest(content) == digest:
                return content
    return path.read_bytes() if path.exists() else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _pieces(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.\d+-of-\d+")
    return sorted(p for p in path.parent.glob(f"{path.name}.*") if pattern.fullmatch(p.name))


def _named(path: Path, piece: Path) -> tuple[str, int, int]:
    digest, _, place = piece.name[len(path.name) + 1 :].partition(".")
    number, _, count = place.partition("-of-")
    return digest, int(number), int(count)
