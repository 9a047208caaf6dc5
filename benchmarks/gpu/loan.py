"""One command that spends a loan of a GPU well: the pieces of docs/gpu.md, the most valuable first.

    metastable bench gpu loan --minutes 9 --data DIR --out DIR
    metastable bench gpu loan --minutes 9 --data DIR --out DIR --only correct,fast
    metastable bench gpu loan --minutes 5 --data DIR --out DIR --tiny          # the rehearsal, on a CPU

Every piece is a process with a time limit of its own; one that fails or takes too long stops no other.  What
there is of its result is in DIR/loan.json within seconds, the end of what it printed in DIR/loan.log, and
files that it trains beside them: eight files at most, all in DIR itself, each under 16 MiB.  Ends with a
short table, and with status 1 if a piece failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from benchmarks.gpu import common
from benchmarks.gpu.returned import Returned
from metastable import console
from metastable.errors import MetastableError

LIBRARY = "eager autograd;graphs f16;graphs bf16;graphs tf32"
OWN = "eager autograd;graphs f16;own kernels;own kernels, 192 at a time"


@dataclass(frozen=True)
class Piece:
    """One line of the order of value.

    Attributes:
        minutes: its limit; None takes what is left but for the limits of those behind it.
        module: run with `python -m`; a piece whose module is not there is left out.
        arguments: its command line, with {data}, {bundle}, {device} and {minutes} of the loan, {folder} for
            the piece's own folder, of which result.json is read, and {work} for what outlives a loan.
        tiny: what the rehearsal adds to that.
        back: patterns of files in the folder that are handed back, the most important first.
    """

    name: str
    minutes: float | None
    module: str
    arguments: str
    tiny: str = "--tiny"
    back: tuple[str, ...] = ()


RESULT = "--bundle {bundle} --device {device} --out {folder}/result.json"
PIECES = (
    Piece("correct", 1.5, "benchmarks.gpu.correct", RESULT),
    Piece(
        "fast",
        2.0,
        "benchmarks.gpu.fast",
        f"{RESULT} --sizes 100,6000 --only '{LIBRARY}'",
        "--tiny --sizes 1,2",
    ),
    Piece("own", 2.5, "benchmarks.gpu.fast", f"{RESULT} --sizes 100,6000 --only '{OWN}'", "--tiny --sizes 2"),
    Piece("profile", 1.0, "benchmarks.gpu.kernels", f"{RESULT} --sizes 100,6000", "--tiny --sizes 2"),
    Piece(
        "harden",
        None,
        "benchmarks.gpu.harden",
        "train --data {data} --device {device} --minutes {minutes} --run {work}/harden --out {folder}",
        back=("*.safetensors*", "*.json", "*.jsonl", "*.png"),
    ),
    Piece(
        "energy",
        None,
        "metastable.training",
        "energy-device --bundle {bundle} --data {data} --device {device} --minutes {minutes} --out {folder}",
        "--updates 4 --switch 2 --warm 2 --features 4 --bank 8 --batch 4 --steps 2 --report-every 2 "
        "--check-images 4 --check-steps 2",
        back=("weights-fp16*", "config.json", "so-far.json", "checkpoint.pt*", "log.jsonl", "*.png"),
    ),
    Piece(
        "serve",
        1.5,
        "benchmarks.gpu.serve",
        f"{RESULT} --settings fast --seconds 5",
        "--tiny --settings fast",
    ),
)
LEAST = 0.4  # minutes below which a piece is not begun
GRACE = 0.25  # minutes before its limit that a piece with {minutes} is told to be done


class Loan:
    """The pieces of one loan.

    Args:
        until: on `time.monotonic`, when everything must be over.
        folder: of the pieces' own folders.
        values: what the braces of `Piece.arguments` stand for.
    """

    def __init__(
        self, until: float, folder: Path, returned: Returned, values: dict[str, str], *, tiny: bool
    ) -> None:
        self._until, self._folder, self._returned = until, folder, returned
        self._values, self._tiny = values, tiny
        self._child: subprocess.Popen[bytes] | None = None

    def spend(self, pieces: Sequence[Piece]) -> common.Rows:
        """Run the pieces in order; a row for each: its state, its seconds, and files that were left out."""
        rows: common.Rows = []
        for i, piece in enumerate(pieces):
            kept = sum(60 * (later.minutes or 0) for later in pieces[i + 1 :])
            print(f"--- {piece.name}", flush=True)
            row = self._run(piece, kept)
            rows.append(row)
            self._returned.row(row)
            print(f"{piece.name}: {row['state']}, {row.get('seconds', 0)} s", flush=True)
        return rows

    def _run(self, piece: Piece, kept: float) -> dict[str, object]:
        left = self._until - time.monotonic()
        limit = min(60 * piece.minutes, left) if piece.minutes else max(left - kept, 0.0)
        row: dict[str, object] = {"piece": piece.name}
        if importlib.util.find_spec(piece.module) is None:
            return row | {"state": f"left out: there is no {piece.module}"}
        if limit < 60 * LEAST:
            return row | {"state": "left out: no time"}
        folder = self._folder / piece.name
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        self._returned.begin(piece.name, folder, piece.back)
        status = self._wait(self._command(piece, folder, limit), folder, limit)
        left_out = self._returned.collect()
        state = "over its limit" if status is None else "done" if status == 0 else f"failed: status {status}"
        row |= {"state": state, "seconds": round(time.monotonic() - started, 1)}
        return row | ({"left_out": ", ".join(left_out)} if left_out else {})

    def _command(self, piece: Piece, folder: Path, limit: float) -> str:
        minutes = f"{max(limit / 60 - GRACE, 0.1):.2f}"
        values = self._values | {"folder": str(folder), "minutes": minutes}
        extra = f" {piece.tiny}" if self._tiny else ""
        return f"'{sys.executable}' -m {piece.module} {piece.arguments.format(**values)}{extra}"

    def _wait(self, command: str, folder: Path, limit: float) -> int | None:
        """The status of a command, or None if it was ended after `limit` seconds."""
        until = time.monotonic() + limit
        with (folder / "log.txt").open("wb") as log:
            self._child = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OUT": str(folder)},
            )
            try:
                while time.monotonic() < until:
                    try:
                        return self._child.wait(min(2.0, max(until - time.monotonic(), 0.01)))
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


def chosen(only: str | None) -> tuple[Piece, ...]:
    """The pieces of these names, in the order given, or all.  Raises MetastableError for another name."""
    by_name = {piece.name: piece for piece in PIECES}
    names = only.split(",") if only else list(by_name)
    if unknown := [name for name in names if name not in by_name]:
        raise MetastableError(f"no piece {', '.join(unknown)}: choose from {', '.join(by_name)}")
    return tuple(by_name[name] for name in names)


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument("--minutes", type=float, required=True, help="for everything")
    parser.add_argument("--data", default=os.environ.get("METASTABLE_DATA", "data"), help="of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is handed back")
    parser.add_argument("--work", type=Path, help="folder of runs that go on in the next loan")
    parser.add_argument("--bundle", default="model_store/cifar10", help="folder of the bundle")
    parser.add_argument("--device", default="auto", help="cuda, cpu; auto takes CUDA where there is one")
    parser.add_argument("--only", help="names of pieces, separated by commas, in this order")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal: everything, at a size for a CPU")
    parser.set_defaults(run=run, resumes="work", tells=True)


def run(args: argparse.Namespace) -> int:
    """Spend the loan; the exit status."""
    started, pieces = time.monotonic(), chosen(args.only)

    def told_to_end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, told_to_end)
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        values = {"data": args.data, "bundle": args.bundle, "device": args.device, "work": str(work)}
        returned = Returned(args.out, {"command": "gpu loan", "minutes": args.minutes, "tiny": args.tiny})
        loan = Loan(started + 60 * args.minutes, work / "pieces", returned, values, tiny=args.tiny)
        rows = loan.spend(pieces)
    print(common.table(rows, ("piece", "state", "seconds", "left_out")))
    print("\n".join(returned.findings()))
    return int(any(str(row["state"]).startswith("failed") for row in rows))


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.loan")


if __name__ == "__main__":
    main()
