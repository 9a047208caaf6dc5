"""Files of a bundle: plain names in its folder, read whole, written atomically."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from metastable.bundle.checks import MANIFEST
from metastable.errors import BundleError

MANIFEST_BYTES, SETTINGS_BYTES, PART_BYTES = 2**24, 2**16, 512 * 2**20
"""The most that bundle.json, settings.yaml and the file of a part may hold."""


def read(folder: Path, name: str, limit: int) -> bytes:
    """The bytes of a regular file that is no link; BundleError if it is not, or larger than `limit`."""
    try:
        # NONBLOCK: opening a pipe would otherwise wait for a writer.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(
            f"{name} is missing from bundle {folder.name or folder}, or a link: {error.strerror}"
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise BundleError(f"{name} of bundle {folder.name or folder} is no file, or above {limit} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise BundleError(f"{name} of bundle {folder.name or folder} grows while it is read")
    return data


def read_checked(folder: Path, name: str, limit: int, wanted: str) -> bytes:
    """As `read`; BundleError too if the SHA-256 is not the one wanted."""
    data = read(folder, name, limit)
    if digest(data) != wanted:
        raise BundleError(f"{name} does not match its SHA-256 in {MANIFEST}: it is damaged or was changed")
    return data


def replace(folder: Path, name: str, data: bytes) -> None:
    """Put `data` at `name` in one move, so that a link there is replaced and not followed."""
    part = folder / f".{name}.part"
    part.unlink(missing_ok=True)
    part.write_bytes(data)
    part.replace(folder / name)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
