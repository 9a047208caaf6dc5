"""Item 4: the papers' tables with our models, in pieces of a few minutes.

    metastable bench gpu judge --table hill --minutes 9 --work runs/gpu/judge --out runs/gpu/hill.json

Runs `metastable evaluate robust` on the defenses of papers.yaml.  Every image's outcome is
kept in --work, so that a piece that ran out of time goes on with the same command; the last piece
prints the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu import common
from metastable import console
from metastable.evaluation.outcomes import read_outcomes
from metastable.training.run import device_of

SETTINGS = Path(__file__).with_name("papers.yaml")
CURVE = (1, 10, 100, 250, 500, 1000, 1500, 2000)
TABLES: dict[str, tuple[str, ...]] = {
    "hill": (
        *("hill_10:transfer:1000", "hill_1500:transfer:1000"),
        *("hill_10:bpda-eot:500", "hill_1500:bpda-eot:500"),
        *("hill_10:exact:100", "hill_1500:exact:100"),
    ),
    "curve": tuple(f"hill_{steps}:transfer:200" for steps in CURVE),
    "adp": (
        *("adp_25:transfer:1000", "adp_10:transfer:1000"),
        *("adp_25:bpda-eot:500", "adp_10:bpda-eot:500", "adp_25_detecting:bpda-eot:500"),
        *("adp_25:joint-score:500", "adp_25:joint-full:500"),
        *("adp_25:spsa:100", "adp_25:exact:100"),
    ),
}
"""setting:attack:images of each table, the cheap rows first."""
GOALS = {
    ("hill_1500", "bpda-eot"): ("natural at least 0.84, unbroken at least 0.55", 0.84, 0.55),
    ("adp_25", "bpda-eot"): ("natural at least 0.86, unbroken at least 0.70", 0.86, 0.70),
}


def command(args: Any, rows: tuple[str, ...], out: Path) -> list[str]:
    """The measurement of these rows."""
    device = device_of(args.device).type
    made = [sys.executable, "-m", "metastable.evaluation", "robust", "--bundle", str(args.bundle)]
    made += ["--settings-file", str(args.settings_file), "--rows", ",".join(rows), "--device", device]
    made += ["--work", str(args.work), "--batch", str(args.batch), "--out", str(out)]
    if args.data:
        made += ["--data", args.data]
    return made + (["--steps", "1", "--samples", "2", "--check", "2"] if args.tiny else [])


def ended(made: list[str], minutes: float) -> bool:
    """Whether the command ended by itself; raises RuntimeError if it failed."""
    child = subprocess.Popen(made, stdout=subprocess.DEVNULL)
    try:
        status = child.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        child.terminate()  # what is finished is on disk; an interrupt is not heard in the background
        child.wait()
        return False
    if status:
        raise RuntimeError(f"status {status}: {' '.join(made)}")
    return True


def progress(rows: tuple[str, ...], work: Path) -> common.Rows:
    """How many images of each row have an outcome."""
    done = [(o["setting"], o["attack"]) for o in read_outcomes(work / "outcomes.jsonl")]
    found = []
    for asked in rows:
        setting, attack, n = asked.split(":")
        found.append(
            {"setting": setting, "attack": attack, "n": int(n), "done": done.count((setting, attack))}
        )
    return found


def judged(rows: common.Rows) -> common.Rows:
    """The goals of the rows that were measured: the worse of natural and unbroken, beside what is asked."""
    found = []
    for row in rows:
        if (goal := GOALS.get((row["setting"], row["attack"]))) and row.get("unbroken"):
            text, natural, unbroken = goal
            got = [row["natural"][0], row["unbroken"][0]]
            met = got[0] >= natural and got[1] >= unbroken
            said = {"target": f"{row['setting']}: {text}", "least": [natural, unbroken]}
            found.append({**said, "measured": got, "met": met})
    return found


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this script."""
    common.add_arguments(parser, __doc__)
    parser.add_argument("--table", choices=tuple(TABLES), required=True, help="which table")
    parser.add_argument("--settings-file", type=Path, default=SETTINGS, help="the defenses")
    parser.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
    parser.add_argument("--work", type=Path, required=True, help="folder of the outcomes; resumed")
    parser.add_argument("--batch", type=int, default=64, help="images attacked together")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this piece")
    parser.set_defaults(run=run, resumes="work")


def run(args: argparse.Namespace) -> int:
    """The whole script; its exit status."""
    rows = TABLES[args.table]
    if args.tiny:
        rows = tuple(f"{row.rpartition(':')[0]}:1" for row in rows if "1500" not in row and "2000" not in row)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "robust.json"
        finished = ended(command(args, rows, out), args.minutes)
        found = json.loads(out.read_text())["rows"] if finished else progress(rows, args.work)
    columns = ("setting", "attack", "n", "natural", "robust", "unbroken", "seconds", "done")
    result = {"command": f"gpu judge {args.table}", "finished": finished, "rows": found}
    common.finish(args, {**result, "targets": judged(found)}, columns)
    return 0


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.judge")


if __name__ == "__main__":
    main()
