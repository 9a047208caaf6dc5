"""Bytes of files that others named: no more than a limit, and of regular files only."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read(path: Path, most: int) -> bytes:
    """What is in a file, at most `most` bytes.

    Raises OSError, whose `strerror` says why, for a larger file, one that cannot be read, and what is no
    regular file: a device may have no end, and a pipe may never begin.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe waits for somebody who writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError:  # a null byte in the name
        raise OSError(errno.EINVAL, "its name has a null byte") from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        data = file.read(most + 1)  # not by its size, which may grow, or be said to be 0
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes")
    return data
