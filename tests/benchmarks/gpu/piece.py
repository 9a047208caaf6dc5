"""A piece of a loan that does what its arguments say."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--files", default="", help="NAME:BYTES, separated by commas")
parser.add_argument("--sleep", type=float, default=0.0)
parser.add_argument("--status", type=int, default=0)
parser.add_argument("--tiny", action="store_true")
parser.add_argument("--paused", action="store_true", help="the result says that it is not finished")
parser.add_argument("--seen", type=Path, help="end, with status 0, when this loan.json has the result")
parser.add_argument("--waited", type=float, default=60.0, help="seconds that `--seen` waits")
given = [*sys.argv[1:], "--"]
own, of_trainer = given[: given.index("--")], given[given.index("--") + 1 : -1]
args = parser.parse_args(own)
print("tiny" if args.tiny else "full", *of_trainer, flush=True)
result = {"rows": [{"check": "x", "ok": False, "value": 2}], "finished": not args.paused}
(args.folder / "result.json").write_text(json.dumps(result))
for name, size in (item.split(":") for item in args.files.split(",") if item):
    (args.folder / name).write_bytes(bytes(int(size)))
time.sleep(args.sleep)
until = time.monotonic() + args.waited
while args.seen and args.folder.name not in json.loads(args.seen.read_text())["results"]:
    if time.monotonic() > until:
        sys.exit("nobody took the result while this was running")
    time.sleep(0.1)
sys.exit(args.status)
