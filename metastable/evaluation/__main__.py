"""Command line of the measurements.

calibrate   set the anomaly threshold of a bundle on training-split images
table       natural and transfer-PGD accuracy of settings, with detection
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from metastable import anomaly, bundle, datasets
from metastable.errors import MetastableError
from metastable.evaluation import report, table


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    train = datasets.load(args.dataset, datasets.data_root(args.data), "train").take(args.n)
    norms = anomaly.score_norms(datasets.to_float(train.images), loaded.scores[args.network])
    result = anomaly.calibrate(
        norms,
        false_positive_rate=args.false_positive_rate,
        network=args.network,
        data={"name": train.name, "split": train.split, "sha256": train.digest()},
    )
    bundle.set_anomaly(args.bundle, result)
    return {"command": "calibrate", **dataclasses.asdict(result)}


def make_table(args: argparse.Namespace) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    test = datasets.load(args.dataset, datasets.data_root(args.data), "test").take(args.n, skip=args.skip)
    config = table.TableConfig(
        settings=tuple(args.settings.split(",")),
        n=len(test),
        skip=args.skip,
        steps=args.attack_steps,
        seed=args.seed,
        bundle=loaded.digest,
        data=test.digest(),
    )
    summary = table.measure(loaded, test, config, args.work)
    assert loaded.anomaly is not None
    summary |= {
        "command": "table",
        "config": dataclasses.asdict(config),
        "machine": f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    outcomes = table.read_outcomes(args.work / "outcomes.jsonl")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(report.markdown(summary))
        report.draw(summary, outcomes, loaded.anomaly.threshold, args.out.with_suffix(".png"))
    print(report.markdown(summary))
    return summary


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m metastable.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--bundle", type=Path, default=Path("model_store/cifar10"))
    common.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
    common.add_argument("--dataset", default="cifar10")
    common.add_argument("--out", type=Path, help="write the JSON line here as well")
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("calibrate", parents=[common])
    first.add_argument("--n", type=int, default=5000)
    first.add_argument("--false-positive-rate", type=float, default=0.05)
    first.add_argument("--network", default="score", choices=("score", "energy"))
    first.set_defaults(run=calibrate)
    second = commands.add_parser("table", parents=[common])
    second.add_argument("--settings", default="none,fast,balanced")
    second.add_argument("--n", type=int, default=1000)
    second.add_argument("--skip", type=int, default=0, help="leave out the first images of the fixed order")
    second.add_argument("--attack-steps", type=int, default=20)
    second.add_argument("--seed", type=int, default=0)
    second.add_argument("--work", type=Path, required=True, help="folder of the outcomes; resumed")
    second.set_defaults(run=make_table)
    args = parser.parse_args()
    try:
        line = json.dumps(args.run(args))
    except MetastableError as error:
        parser.exit(2, f"{error}\n")
    if args.out:
        args.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
