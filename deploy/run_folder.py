"""The folder that one running server owns: configuration, logs, temporary files.

    .run/config.properties   what TorchServe really reads
    .run/logs/               new at each start, kept afterwards
    .run/metrics/            counters of door and workers, removed at the stop
    .run/key_file.json       the keys that TorchServe asks the door for, removed at the stop
    .run/runner.json         the runner that `auto` found fastest for a bundle
    .run/tmp/                sockets and unpacked archive, removed at the stop

It is also the working directory of the JVM, whose class path starts with `.`: nobody else may
write there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from metastable.errors import MetastableError

SOCKET_PATH_LIMIT = 100  # bytes; Linux allows 107, macOS 103
_LONGEST_SOCKET_NAME = "/control/4194304.sock"


class Refused(MetastableError):
    """The server cannot be started as asked; the message is one line that says what to do."""


class Failed(Exception):
    """The server was started and then failed; the message says how."""


def effective(template: str, values: Mapping[str, str]) -> str:
    """The template with the given keys' values replaced, comments and other lines kept.

    >>> effective("# where\\nmodel_store=here\\n", {"model_store": "/srv/models"})
    '# where\\nmodel_store=/srv/models\\n'
    """
    missing = set(values)
    lines = []
    for line in template.splitlines():
        key = line.split("=", 1)[0].strip()
        if key in values and not line.lstrip().startswith("#"):
            line = f"{key}={escape(values[key])}"
            missing.discard(key)
        lines.append(line)
    if missing:
        raise Refused(f"config.properties has no line for {', '.join(sorted(missing))}: restore it")
    return "\n".join(lines) + "\n"


def escape(value: str) -> str:
    """`value` as Java's Properties read it: a backslash is doubled, what is not ASCII is \\uXXXX."""
    units = value.replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
    return "".join(chr(code) if 32 <= code < 127 else f"\\u{code:04x}" for code in codes)


def allowed_urls(store: Path) -> str:
    """The regular expression that admits files right in the model store and nothing else.

    All but the plainest characters are written as numbers: none of them can then be an operator
    or the comma at which TorchServe splits the list.
    """
    plain = re.sub(r"[^A-Za-z0-9/_-]", lambda found: f"\\x{{{ord(found[0]):x}}}", str(store))
    return f"file://{plain}/[A-Za-z0-9_.-]+"


class RunFolder:
    """Owned from `RunFolder(path)` until `close()`; Refused if it is unsafe or in use."""

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()
        self.logs = self.root / "logs"
        self.metrics = self.root / "metrics"
        self.runner_cache = self.root / "runner.json"
        self.config = self.root / "config.properties"
        self.keys = self.root / "key_file.json"
        self._check()
        self._lock = self._take()
        self.keys.unlink(missing_ok=True)
        # Files of dead workers go with the folder: their numbers would be counted again.
        self.scratch = self.root / "tmp"
        for folder in (self.logs, self.metrics, self.scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, exist_ok=True)  # one that is mounted there stays
        if len(os.fsencode(self.scratch)) + len(_LONGEST_SOCKET_NAME) > SOCKET_PATH_LIMIT:
            self.scratch.rmdir()
            self.scratch = _short_folder(self.root)

    def close(self) -> None:
        """Remove what was temporary; logs and configuration stay to be read."""
        for folder in (self.scratch, self.metrics):
            shutil.rmtree(folder, ignore_errors=True)
        self.keys.unlink(missing_ok=True)
        self._lock.close()

    def write_config(
        self, template: Path, archive: Path, socket: Path, metrics_port: int, most_bytes: int
    ) -> None:
        """Write the copy of the template that TorchServe reads.

        Args:
            socket: where it takes requests; the door alone reaches it.
            metrics_port: of its own metrics, on loopback.
            most_bytes: of a request.
        """
        store = archive.parent
        values = {
            "inference_address": f"unix:{socket}",
            "management_address": f"unix:{self.scratch}/management.sock",
            "metrics_address": f"http://127.0.0.1:{metrics_port}",
            "model_store": str(store),
            "load_models": f"metastable={archive.name}",
            "allowed_urls": allowed_urls(store),
            "max_request_size": str(most_bytes),
        }
        self.config.write_text(effective(template.read_text(encoding="utf-8"), values), encoding="utf-8")

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of each log that has any."""
        parts = []
        for path in sorted(self.logs.glob("*.log")):
            if text := path.read_text(encoding="utf-8", errors="replace").strip():
                parts.append(f"--- the end of {path}\n" + "\n".join(text.splitlines()[-lines:]))
        return "\n".join(parts) or f"(the logs in {self.logs} are empty)"

    def failed_loads(self) -> int:
        """How often a worker has died while it loaded the model; TorchServe starts it again for minutes."""
        log = self.logs / "server.log"
        return log.read_text(errors="replace").count("Load model failed") if log.exists() else 0

    def _check(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.root.stat()
        except OSError as error:
            raise Refused(f"cannot use {self.root} as --run-dir: {error.strerror}") from None
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Refused(
                f"{self.root} can be changed by other users: "
                "run `chmod go-w` on it, or name another --run-dir"
            )
        # Folders in it will be emptied: it must be one of ours.
        if any(self.root.iterdir()) and not (self.root / "lock").exists():
            raise Refused(f"{self.root} holds files of something else: name an empty or new --run-dir")

    def _take(self) -> IO[str]:
        try:
            lock = (self.root / "lock").open("w")
        except OSError as error:
            raise Refused(f"cannot write to {self.root}: {error.strerror}: name another --run-dir") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise Refused(f"a server runs from {self.root}: stop it, or name another --run-dir") from None
        return lock


def _short_folder(root: Path) -> Path:
    """A new one, of one name for a run folder: who is killed leaves it to the next."""
    found = root.stat()  # containers that share a temporary directory may have folders of one path
    same = f"{found.st_dev}:{found.st_ino}:".encode() + os.fsencode(root)
    name = f"metastable-{hashlib.sha256(same).hexdigest()[:8]}"
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(f"{parent}/{name}xxxxxxxx{_LONGEST_SOCKET_NAME}")) > SOCKET_PATH_LIMIT:
            continue
        folder = Path(parent, name)
        if not folder.is_symlink() and folder.is_dir() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)  # who holds the lock is alone
        try:
            folder.mkdir(mode=0o700)
        except OSError:  # somebody else's
            return Path(tempfile.mkdtemp(prefix=name, dir=parent))
        return folder
    raise Refused("no folder with a path short enough for a unix socket: set TMPDIR or --run-dir to one")
