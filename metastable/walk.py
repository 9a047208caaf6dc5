"""The pictures in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from metastable.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".npy", ".png", ".webp")


def walk(folder: Path) -> tuple[list[str], int]:
    """Names of the pictures in a folder and its sub-folders, in order, and how many links
    and other files that are none, such as pipes, were left out.

    Names are relative to the folder, with slashes.  Files whose name begins with a point are left out, and so
    are sub-folders, and links that lead out of the folder.  A link to a picture inside is taken unless that
    picture is there under its own name; links to folders are not followed.

    Raises DataError for a folder that is none, cannot be read, or has no pictures.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}")

    root, found, out = folder.resolve(), dict[str, Path](), 0
    if not root.is_dir():
        raise DataError(f"{folder} is not a folder of pictures")
    for place, below, files in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        for file in files:
            path = Path(place, file)
            if file.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            target = path.resolve() if path.is_symlink() else path
            if target.is_relative_to(root) and target.is_file():
                found[path.relative_to(root).as_posix()] = target
            else:
                out += 1
    own = {target for name, target in found.items() if target == root / name}
    names, seen = [], set[Path]()
    for name, target in sorted(found.items()):
        if target == root / name or (target not in own and target not in seen):
            names.append(name)
            seen.add(target)
    if not names:
        raise DataError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return names, out
