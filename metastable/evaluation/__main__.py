"""Command line of the measurements.

calibrate   set the anomaly threshold of a bundle on training-split images
table       natural and transfer-PGD accuracy of settings, with detection
robust      accuracy under attacks that know the defense
latency     milliseconds of one image at a time, without a server
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from metastable import anomaly, bundle, datasets, settings
from metastable.attacks.catalogue import NAMES
from metastable.errors import MetastableError, SettingsError
from metastable.evaluation import latency, outcomes, report, robust, table
from metastable.images import decode


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


def load_bundle(args: argparse.Namespace) -> bundle.Bundle:
    """The bundle, with its settings replaced by those of --settings-file where given."""
    loaded = bundle.load(args.bundle)
    if args.settings_file:
        loaded = dataclasses.replace(loaded, settings=settings.load(args.settings_file))
    return loaded


def chosen_settings(args: argparse.Namespace, loaded: bundle.Bundle) -> tuple[str, ...]:
    names = tuple(args.settings.split(",")) if args.settings else loaded.settings.names
    if unknown := sorted(set(names) - set(loaded.settings.names)):
        raise SettingsError(f"there are no settings {unknown}: choose from {loaded.settings.names}")
    return names


def measure_latency(args: argparse.Namespace) -> dict[str, Any]:
    loaded = load_bundle(args)
    names = chosen_settings(args, loaded)
    images = torch.stack([decode(path.read_bytes()).pixels for path in sorted(args.images.glob("*.png"))])
    rows = latency.measure(loaded, images, names, args.rounds)
    for row in rows:
        print(f"{row['setting']:<16}{row['median_ms']:>9.1f} ms  (p90 {row['p90_ms']:.1f})")
    return {"command": "latency", "rows": rows, "machine": machine()}


def make_table(args: argparse.Namespace) -> dict[str, Any]:
    loaded = load_bundle(args)
    test = datasets.load(args.dataset, datasets.data_root(args.data), "test").take(args.n, skip=args.skip)
    config = table.TableConfig(
        settings=chosen_settings(args, loaded),
        n=len(test),
        skip=args.skip,
        steps=args.attack_steps,
        seed=args.seed,
        bundle=f"{loaded.digest} {loaded.settings.digest()}",
        data=test.digest(),
    )
    summary = table.measure(loaded, test, config, args.work)
    assert loaded.anomaly is not None
    summary |= {
        "command": "table",
        "config": dataclasses.asdict(config),
        "machine": machine(),
    }
    lines = outcomes.read_outcomes(args.work / "outcomes.jsonl")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(report.markdown(summary))
        report.draw(summary, lines, loaded.anomaly.threshold, args.out.with_suffix(".png"))
    print(report.markdown(summary))
    return summary


def make_robust(args: argparse.Namespace) -> dict[str, Any]:
    loaded = load_bundle(args)
    test = datasets.load(args.dataset, datasets.data_root(args.data), "test").take(args.n, skip=args.skip)
    asked = ("skip", "norm", "eps", "step", "steps", "samples", "check", "batch", "seed")
    config = robust.RobustConfig(
        settings=chosen_settings(args, loaded),
        attacks=args.attack,
        n=len(test),
        **{name: getattr(args, name) for name in asked},
        bundle=f"{loaded.digest} {loaded.settings.digest()}",
        data=test.digest(),
    )
    summary = robust.measure(loaded, test, config, args.work, args.device)
    summary |= {"command": "robust", "config": dataclasses.asdict(config), "machine": machine()}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(report.robust_markdown(summary))
        report.draw_robust(summary, args.out.with_suffix(".png"))
    print(report.robust_markdown(summary))
    return summary


def attack_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(NAMES)):
        raise argparse.ArgumentTypeError(f"there are no attacks {unknown}: choose from {', '.join(NAMES)}")
    return names


def fraction(text: str) -> float:
    """A length like 8/255 or 0.5."""
    return float(Fraction(text))


def machine() -> str:
    """The processor, its cores and PyTorch's version, for the record."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


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
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--settings", help="names separated by commas (default: all)")
    chosen.add_argument("--settings-file", type=Path, help="take settings from here, not from the bundle")
    second = commands.add_parser("table", parents=[common, chosen])
    second.add_argument("--n", type=int, default=1000)
    second.add_argument("--skip", type=int, default=0, help="leave out the first images of the fixed order")
    second.add_argument("--attack-steps", type=int, default=20)
    second.add_argument("--seed", type=int, default=0)
    second.add_argument("--work", type=Path, required=True, help="folder of the outcomes; resumed")
    second.set_defaults(run=make_table)
    third = commands.add_parser("latency", parents=[common, chosen])
    third.add_argument("--images", type=Path, default=Path("samples"), help="folder of PNG images")
    third.add_argument("--rounds", type=int, default=5)
    third.set_defaults(run=measure_latency)
    fourth = commands.add_parser("robust", parents=[common, chosen])
    fourth.add_argument("--attack", type=attack_names, required=True, help=f"of {', '.join(NAMES)}")
    fourth.add_argument("--n", type=int, default=100)
    fourth.add_argument("--skip", type=int, default=0, help="leave out the first images of the fixed order")
    fourth.add_argument("--norm", default="linf", choices=("linf", "l2"))
    fourth.add_argument("--eps", type=fraction, default="8/255")
    fourth.add_argument("--step", type=fraction, help="default: eps / 4")
    fourth.add_argument("--steps", type=int, help="default: the attack's own")
    fourth.add_argument("--samples", type=int, default=15, help="EOT samples, H_adv")
    fourth.add_argument("--check", type=int, default=150, help="chains that confirm a break, H_def")
    fourth.add_argument("--batch", type=int, default=4, help="images attacked together")
    fourth.add_argument("--seed", type=int, default=0)
    fourth.add_argument("--device", default="cpu", help="of attack and defense, such as cuda")
    fourth.add_argument("--work", type=Path, required=True, help="folder of the outcomes; resumed")
    fourth.set_defaults(run=make_robust)
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
