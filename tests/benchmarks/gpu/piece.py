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
args = parser.parse_args()
print("tiny" if args.tiny else "full", flush=True)
(args.folder / "result.json").write_text(json.dumps({"rows": [{"check": "x", "ok": False, "value": 2}]}))
for name, size in (item.split(":") for item in args.files.split(",") if item):
    (args.folder / name).write_bytes(bytes(int(size)))
time.sleep(args.sleep)
sys.exit(args.status)
