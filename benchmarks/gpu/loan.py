"""One command that spends a loan of a GPU well: the pieces of docs/gpu.md, the most valuable first.

    metastable bench gpu loan --data DIR
    metastable bench gpu loan --minutes 9 --data DIR --out DIR --only correct,fast
    metastable bench gpu loan --minutes 9 --data DIR --out DIR --only energy --resume EARLIER
    metastable bench gpu loan --tiny                                    # the rehearsal, on a CPU

Every piece is a process with a time limit of its own; one that fails or takes too long stops no other.  What
is measured comes first and cannot take the training's share of the loan; what is left over goes to whatever
comes next.  What there is of a piece's result is in DIR/loan.json within seconds, the end of what it printed
in DIR/loan.log, and what it trained beside them (`benchmarks.gpu.returned`): eight files at most, all in DIR
itself, each under 16 MiB.  Ends with a short table, and with status 1 if a piece failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import numpy as np

from benchmarks.gpu import common
from benchmarks.gpu.pieces import Piece, chosen
from benchmarks.gpu.returned import Returned, restore
from metastable import console
from metastable.errors import MetastableError

LEAST = 0.4  # minutes below which a piece is not begun
GRACE = 1 / 3  # minutes before its limit that a piece with {minutes} is told to be done
LOOK = 2.0  # seconds between looks at what a piece has written
MINUTES, TINY_MINUTES = 9.0, 30.0
SLACK = 4.0  # times its limit that a piece may take in the rehearsal: a CPU is slow, however small the work


class Loan:
    """The pieces of one loan.

    Args:
        seconds: from now on, for everything.
        folder: of the pieces' own folders.
        values: what the braces of `Piece.arguments` stand for.
    """

    def __init__(
        self, seconds: float, folder: Path, returned: Returned, values: dict[str, str], *, tiny: bool
    ) -> None:
        self._seconds, self._until = seconds, time.monotonic() + seconds
        self._folder, self._returned = folder, returned
        self._values, self._tiny = values, tiny
        self._child: subprocess.Popen[bytes] | None = None

    def spend(self, pieces: Sequence[Piece]) -> common.Rows:
        """Run the pieces in order; a row for each: its state, its seconds, and files that were left out."""
        rows: common.Rows = []
        for i, piece in enumerate(pieces):
            print(f"--- {piece.name}", flush=True)
            row = self._run(piece, self.limit(piece, pieces[i + 1 :]))
            rows.append(row)
            self._returned.row(row)
            print(f"{piece.name}: {row['state']}, {row.get('seconds', 0)} s", flush=True)
        return rows

    def limit(self, piece: Piece, later: Sequence[Piece]) -> float:
        """Seconds that a piece may take if it begins now, and `later` are to come."""
        left, shares = max(self._until - time.monotonic(), 0.0), sum(other.share for other in later)
        if piece.share:
            return left * piece.share / (piece.share + shares)
        most = 60 * piece.minutes * (SLACK if self._tiny else 1.0)
        return max(min(most, left - shares * self._seconds), 0.0)

    def _run(self, piece: Piece, limit: float) -> dict[str, object]:
        row: dict[str, object] = {"piece": piece.name}
        if importlib.util.find_spec(piece.module) is None:
            return row | {"state": f"left out: there is no {piece.module}"}
        if limit < 60 * LEAST:
            return row | {"state": "left out: no time"}
        folder = self._folder / piece.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)  # of an earlier loan
        started = time.monotonic()
        self._returned.begin(piece.name, folder, piece.back, piece.apart)
        status = self._wait(self._command(piece, folder, limit), folder, limit)
        left_out = self._returned.collect()
        if status == 0:
            state = "done" if self._returned.finished(piece.name) else "paused"
        else:
            state = "over its limit" if status is None else f"failed: status {status}"
        row |= {"state": state, "seconds": round(time.monotonic() - started, 1)}
        return row | ({"left_out": ", ".join(left_out)} if left_out else {})

    def _command(self, piece: Piece, folder: Path, limit: float) -> list[str]:
        minutes = f"{max(limit / 60 - GRACE, 0.1):.2f}"
        values = self._values | {"folder": str(folder), "minutes": minutes}
        given, flags = piece.arguments, piece.flags
        if self._tiny:
            given, flags = f"{given} {piece.tiny}", f"{flags} {piece.tiny_flags}"
        # Split first: what the braces stand for may have spaces.
        arguments, of_trainer = (
            [word.format(**values) for word in shlex.split(text)] for text in (given, flags)
        )
        return [sys.executable, "-m", piece.module, *arguments, *(["--", *of_trainer] if of_trainer else [])]

    def _wait(self, command: list[str], folder: Path, limit: float) -> int | None:
        """The status of a command, or None if it was ended after `limit` seconds."""
        until = time.monotonic() + limit
        with (folder / "log.txt").open("wb") as log:
            self._child = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OUT": str(folder)},
            )
            try:
                while time.monotonic() < until:
                    try:
                        return self._child.wait(min(LOOK, max(until - time.monotonic(), 0.01)))
                    except subprocess.TimeoutExpired:
                        self._returned.collect()
                return None
            finally:
                self.stop()

    def stop(self) -> None:
        """End the process of the present piece, and what it started."""
        child = self._child
        if child is None or child.poll() is not None:
            return
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def data_of(given: str | None, work: Path, *, tiny: bool) -> str:
    """The folder of the data sets: as given, METASTABLE_DATA, `data`; the rehearsal makes do with noise."""
    named = given or os.environ.get("METASTABLE_DATA")
    if named or not tiny:
        return named or "data"
    folder = work / "noise" / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("data_batch_1.bin", 50), ("test_batch.bin", 10)):
        records = np.random.default_rng(0).integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10  # the labels
        (folder / name).write_bytes(records.tobytes())
    return str(folder.parent)


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument(
        "--minutes", type=float, help=f"for everything; {MINUTES:g}, or {TINY_MINUTES:g} tiny"
    )
    parser.add_argument("--data", help="of the data sets (default: METASTABLE_DATA, data; tiny: noise)")
    parser.add_argument("--out", type=Path, help="folder of what is handed back (default: that of $OUT)")
    parser.add_argument("--work", type=Path, help="folder of runs that go on in the next loan")
    parser.add_argument("--resume", type=Path, help="what an earlier loan handed back: its runs go on")
    parser.add_argument(
        "--bundle", default="model_store/cifar10", help="folder of the bundle, or a shipped one's name"
    )
    parser.add_argument("--device", default="auto", help="cuda, cpu; auto takes CUDA where there is one")
    parser.add_argument("--only", help="names of pieces, separated by commas, in this order")
    parser.add_argument("--flags", action="append", default=[], help="NAME=FLAGS of a piece's trainer")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal: everything, at a size for a CPU")
    parser.set_defaults(run=run, resumes="work", tells=True)


def run(args: argparse.Namespace) -> int:
    """Spend the loan; the exit status."""
    started, pieces = time.monotonic(), chosen(args.only, args.flags)
    minutes = args.minutes or (TINY_MINUTES if args.tiny else MINUTES)
    out = args.out or Path(os.environ.get("OUT") or "runs/gpu/loan")
    if args.resume and args.resume.resolve() == out.resolve():
        raise MetastableError(f"{out} cannot be both --resume and --out: choose another --out")

    def told_to_end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, told_to_end)
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if args.resume:
            for piece in pieces:
                restore(args.resume, piece.name, work / "pieces" / piece.name)
        data = data_of(args.data, work, tiny=args.tiny)
        values = {"data": data, "bundle": args.bundle, "device": args.device, "work": str(work)}
        returned = Returned(
            out,
            {"command": "gpu loan", "minutes": minutes, "tiny": args.tiny},
            archives=sum(bool(piece.back) for piece in pieces),
        )
        seconds = 60 * minutes - (time.monotonic() - started)
        rows = Loan(seconds, work / "pieces", returned, values, tiny=args.tiny).spend(pieces)
    print(common.table(rows, ("piece", "state", "seconds", "left_out")))
    print("\n".join(returned.findings()))
    return int(any(str(row["state"]).startswith("failed") for row in rows))


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.loan")


if __name__ == "__main__":
    main()
