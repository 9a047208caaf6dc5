"""What a loan hands back: a few small files in one folder, complete at any moment.

A machine hands back at most FILES files of at most BYTES each.  `loan.json` and `loan.log` are of the whole
loan.  Of a piece that trains there is `NAME.tar` with its small files, for which a place is kept, and, as
long as there are places left, its large ones as `NAME-FILE`.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

FILES = 8
BYTES = 16 * 2**20 - 1
TAIL = 40_000  # bytes of what a piece printed


class Returned:
    """The folder that comes back.

    Args:
        out: the folder; made if it is not there.
        head: what loan.json says at the top.
        archives: how many pieces will have one: so many places are kept for them.
    """

    def __init__(self, out: Path, head: dict[str, Any], archives: int = 0) -> None:
        self._out, self._head = out, head
        self._places = FILES - 2 - archives  # for large files
        self._rows: list[dict[str, Any]] = []
        self._results: dict[str, Any] = {}
        self._printed: dict[str, bytes] = {}
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of what was copied, by its name
        self._packed: dict[str, list[tuple[str, int, int]]] = {}  # and of what lies in archives
        self._name, self._folder = "", Path()
        self._back: tuple[str, ...] = ()
        self._apart: tuple[str, ...] = ()
        out.mkdir(parents=True, exist_ok=True)
        self._write()

    def begin(self, name: str, folder: Path, back: tuple[str, ...], apart: tuple[str, ...] = ()) -> None:
        """From now on `collect` looks at this piece's folder; see `Piece` for its patterns."""
        self._name, self._folder, self._back, self._apart = name, folder, back, apart

    def row(self, row: dict[str, Any]) -> None:
        """A piece is over."""
        self._rows.append(row)
        self._write()

    def finished(self, name: str) -> bool:
        """Whether a piece's result does not say of itself that it is not."""
        return bool(self._results.get(name, {}).get("finished", True))

    def collect(self) -> list[str]:
        """Hand back what the present piece has by now; returns the names of files that were left out."""
        with suppress(FileNotFoundError, ValueError):  # not there, or cut short: what was read before stays
            self._results[self._name] = json.loads((self._folder / "result.json").read_text())
        log = self._folder / "log.txt"
        if log.exists():
            self._printed[self._name] = log.read_bytes()[-TAIL:]
        left_out = self._pack() + self._copy()
        self._write()
        return left_out

    def findings(self) -> list[str]:
        """A line for everything in the results that somebody would first look for."""
        return [
            f"{piece}: {text}"
            for piece, result in self._results.items()
            for row in result.get("rows", [])
            if (text := finding(row))
        ]

    def _wanted(self, patterns: Sequence[str]) -> list[Path]:
        found = (path for pattern in patterns for path in sorted(self._folder.glob(pattern)))
        own = ("result.json", "log.txt")  # which loan.json and loan.log have
        return [
            path
            for path in dict.fromkeys(found)
            if path.is_file() and not path.name.endswith(".part") and path.name not in own
        ]

    def _pack(self) -> list[str]:
        """Put small files that are new into the archive; returns the names of those that it cannot hold."""
        holds: list[tuple[Path, bytes]] = []
        stamps, left_out, size = [], [], tarfile.RECORDSIZE
        for path in self._wanted(self._back):
            try:
                stat, content = path.stat(), path.read_bytes()
            except FileNotFoundError:
                continue  # replaced at this moment: the next look finds the new one
            needs = tarfile.BLOCKSIZE * (2 + len(content) // tarfile.BLOCKSIZE)
            if size + needs > BYTES:
                left_out.append(path.name)
                continue
            size += needs
            holds.append((path, content))
            stamps.append((path.name, stat.st_size, stat.st_mtime_ns))
        if holds and self._packed.get(self._name) != stamps:
            made = io.BytesIO()
            with tarfile.open(fileobj=made, mode="w") as archive:
                for path, content in holds:
                    member = tarfile.TarInfo(path.name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            self._place(f"{self._name}.tar", made.getvalue())
            self._packed[self._name] = stamps
        return left_out

    def _copy(self) -> list[str]:
        """Copy large files that are new; returns the names of those that are too many or too large."""
        names = {f"{self._name}-{path.name}": path for path in self._wanted(self._apart)}
        for gone in [n for n in self._copied if n.startswith(f"{self._name}-") and n not in names]:
            (self._out / gone).unlink(missing_ok=True)
            del self._copied[gone]
        left_out = []
        for name, path in names.items():
            try:
                stat = path.stat()
                stamp = stat.st_size, stat.st_mtime_ns
                if self._copied.get(name) == stamp:
                    continue
                others = len(self._copied) - (name in self._copied)
                if stat.st_size > BYTES or others >= self._places:
                    left_out.append(path.name)
                    continue
                shutil.copyfile(path, self._out / name)
                self._copied[name] = stamp
            except FileNotFoundError:
                continue
        return left_out

    def _write(self) -> None:
        found = {**self._head, "rows": self._rows, "results": self._results}
        text = b"".join(b"=== %s\n%s\n" % (n.encode(), said) for n, said in self._printed.items())
        self._place("loan.json", json.dumps(found).encode() + b"\n")
        self._place("loan.log", text)

    def _place(self, name: str, content: bytes) -> None:
        part = self._out / f".{name}"
        part.write_bytes(content)
        part.replace(self._out / name)


def restore(out: Path, name: str, folder: Path) -> None:
    """Put what `out`, the folder of an earlier loan, has of a piece back into the piece's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = out / f"{name}.tar"
    if archive.exists():
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    for path in out.glob(f"{name}-*"):
        shutil.copyfile(path, folder / path.name.removeprefix(f"{name}-"))


def finding(row: dict[str, Any]) -> str:
    """What a row of a piece's result has to say, in a line; nothing if all is as it should be."""
    where = f"{row.get('chains', '')} chains, {row.get('runner', '')}"
    match row:
        case {"what": what, **figures}:
            return f"{what}: " + ", ".join(f"{name} {_short(value)}" for name, value in figures.items())
        case {"ok": ok}:
            return "" if ok else f"FAILED {row['check']}: {row.get('value')}"
        case {"failed": error}:
            return f"{where}: {error}"
        case {"kernel": kernel}:
            return f"{where}: {row['us']} us in {row['launches']} kernels" if kernel == "all" else ""
        case {"us": us}:
            return (
                f"{where}: {us} us, {row.get('ratio', '-')} times eager, {row['peak_share']:.1%} of the peak"
            )
        case {"images_per_s": rate}:
            return f"{row['setting']}, {row['load']}: {rate} images/s, p99 {row.get('p99_ms', '-')} ms"
    return ""


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
