"""What a loan hands back: a few small files in one folder, complete at any moment."""

from __future__ import annotations

import json
import shutil
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
    """

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self._out, self._head = out, head
        self._rows: list[dict[str, Any]] = []
        self._results: dict[str, Any] = {}
        self._printed: dict[str, bytes] = {}
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of what was copied, by its name
        self._name, self._folder = "", Path()
        self._back: tuple[str, ...] = ()
        out.mkdir(parents=True, exist_ok=True)
        self._write()

    def begin(self, name: str, folder: Path, back: tuple[str, ...]) -> None:
        """From now on `collect` looks at this piece's folder."""
        self._name, self._folder, self._back = name, folder, back

    def row(self, row: dict[str, Any]) -> None:
        """A piece is over."""
        self._rows.append(row)
        self._write()

    def collect(self) -> list[str]:
        """Hand back what the present piece has by now; returns the names of files that were left out."""
        result = self._folder / "result.json"
        if result.exists():
            self._results[self._name] = json.loads(result.read_text())
        log = self._folder / "log.txt"
        if log.exists():
            self._printed[self._name] = log.read_bytes()[-TAIL:]
        left_out = self._copy()
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

    def _copy(self) -> list[str]:
        """Copy files that are new; returns the names of those that are too many or too large."""
        wanted = list(
            dict.fromkeys(
                path
                for pattern in self._back
                for path in sorted(self._folder.glob(pattern))
                if path.is_file() and not path.name.endswith(".part") and path.name != "result.json"
            )
        )
        names = {f"{self._name}-{path.name}": path for path in wanted}
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
                if stat.st_size > BYTES or others + 3 > FILES:  # loan.json and loan.log beside it
                    left_out.append(path.name)
                    continue
                shutil.copyfile(path, self._out / name)
                self._copied[name] = stamp
            except FileNotFoundError:
                continue  # replaced at this moment: the next look finds the new one
        return left_out

    def _write(self) -> None:
        found = {**self._head, "rows": self._rows, "results": self._results}
        text = b"".join(b"=== %s\n%s\n" % (n.encode(), said) for n, said in self._printed.items())
        for name, content in (("loan.json", json.dumps(found).encode() + b"\n"), ("loan.log", text)):
            part = self._out / f".{name}"
            part.write_bytes(content)
            part.replace(self._out / name)


def finding(row: dict[str, Any]) -> str:
    """What a row of a piece's result has to say, in a line; nothing if all is as it should be."""
    where = f"{row.get('chains', '')} chains, {row.get('runner', '')}"
    match row:
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
