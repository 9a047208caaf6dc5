"""The socket that a server listens on, and what it needs of the machine."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from metastable.errors import SettingsError
from metastable.serving.door.limits import Limits

UNIX_MODE = 0o660


def allow_files(limits: Limits) -> None:
    """Let this process open as many files as there may be connections; SettingsError where it must not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= limits.files:
        return
    if hard != resource.RLIM_INFINITY and hard < limits.files:
        raise SettingsError(
            f"{limits.connections} connections need {limits.files} open files, and {hard} are allowed here: "
            "raise that with ulimit -n, or allow fewer connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.files, hard))


@contextlib.contextmanager
def bound(host: str, port: int, uds: Path | None) -> Iterator[tuple[socket.socket, str]]:
    """A socket bound to the address or the path, and its URL.  The path is removed afterwards.

    Raises SettingsError, in one sentence, where that cannot be.
    """
    with contextlib.ExitStack() as stack:
        if uds is not None:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            _bind_unix(listener, uds)
            stack.callback(uds.unlink, missing_ok=True)
            yield listener, f"unix:{uds}"
            return
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sets TCP_NODELAY only where the protocol is named.
        listener = stack.enter_context(socket.socket(family, proto=socket.IPPROTO_TCP))
        # A connection that has just ended must not count as taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "is taken" if taken else f"cannot be used ({getattr(error, 'strerror', None) or error})"
            raise SettingsError(f"port {port} on {host} {why}: choose another with --port") from None
        name = f"[{host}]" if family == socket.AF_INET6 else host
        yield listener, f"http://{name}:{listener.getsockname()[1]}"


def _bind_unix(listener: socket.socket, path: Path) -> None:
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()  # left by a server that was killed
        before = os.umask(0o777 & ~UNIX_MODE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror or error})"
        raise SettingsError(f"the socket {path} {why}: choose another path") from None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(path)) == 0
