"""Command line of export: `bundle` from training runs, `mar` from a bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export import mar, runs
from metastable.errors import MetastableError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("bundle", help="write a bundle from training runs")
    for part in runs.PARTS:
        first.add_argument(f"--{part}", type=Path, required=part == "classifier", help="run folder")
    first.add_argument("--settings", type=Path, required=True)
    first.add_argument("--name", default="cifar10")
    first.add_argument("--out", type=Path, required=True)
    second = commands.add_parser("mar", help="write a TorchServe archive from a bundle")
    second.add_argument("--bundle", type=Path, default=Path("model_store/cifar10"))
    second.add_argument("--config", type=Path, default=Path("model-config.yaml"))
    second.add_argument("--out", type=Path, default=Path("model_store/metastable.mar"))
    args = parser.parse_args()
    try:
        if args.command == "bundle":
            folders = {part: getattr(args, part) for part in runs.PARTS if getattr(args, part)}
            runs.build(folders, args.settings, args.name, args.out)
            result = {"command": "bundle", "out": str(args.out), "parts": list(folders)}
        else:
            digest = mar.build(args.bundle, args.config, args.out)
            result = {"command": "mar", "out": str(args.out), "sha256": digest}
    except MetastableError as error:
        parser.exit(2, f"{error}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
