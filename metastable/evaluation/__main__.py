"""Command line of the measurements.

calibrate   set the anomaly threshold of a bundle on training-split images
table       natural and transfer-PGD accuracy of settings, with detection
robust      accuracy under attacks that know the defense
controls    what must come out of a suite if attack and judge are what they say
resubmit    how often an attacked image that was answered rightly is answered wrongly when it is sent again
honest      how often the flag refuses honest images under benign changes
corruptions accuracy under common corruptions, CIFAR-10-C's files or generated ones
figure      the papers' figures, measured here
latency     milliseconds of one image at a time, without a server
certify     certified l_2 radii of settings, by randomized smoothing
sigma       ADP's heuristic noise level, from training images
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from metastable.errors import MetastableError
from metastable.evaluation import (
    calibrated,
    certified,
    cli,
    controls,
    corrupted,
    figures,
    honest,
    latency,
    outcomes,
    report,
    resubmit,
    robust_command,
    table,
)
from metastable.evaluation.cli import machine
from metastable.images import decode


def measure_latency(args: argparse.Namespace) -> dict[str, Any]:
    loaded = cli.load_bundle(args)
    names = cli.chosen_settings(args.settings, loaded)
    images = torch.stack([decode(path.read_bytes()).pixels for path in sorted(args.images.glob("*.png"))])
    rows = latency.measure(loaded, images, names, args.rounds)
    for row in rows:
        print(f"{row['setting']:<16}{row['median_ms']:>9.1f} ms  (p90 {row['p90_ms']:.1f})")
    return {"command": "latency", "rows": rows, "machine": machine()}


def make_table(args: argparse.Namespace) -> dict[str, Any]:
    loaded = cli.load_bundle(args)
    test = cli.test_images(args, loaded).take(args.n, skip=args.skip)
    config = table.TableConfig(
        settings=cli.chosen_settings(args.settings, loaded),
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
    if (page := cli.beside(args.out, ".md")) and (picture := cli.beside(args.out, ".png")):
        page.write_text(report.markdown(summary))
        report.draw(summary, lines, loaded.anomaly.threshold, picture)
    print(report.markdown(summary))
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m metastable.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common, chosen = cli.common(), cli.chosen()
    commands = parser.add_subparsers(dest="command", required=True)
    calibrated.add(commands, [common])
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
    robust_command.add(commands, [common, chosen])
    controls.add(commands, [common])
    resubmit.add(commands, [common, chosen])
    honest.add(commands, [common, chosen])
    corrupted.add(commands, [common, chosen])
    figures.add(commands, [common, chosen])
    certified.add(commands, [common, chosen])
    args = parser.parse_args()
    try:
        line = json.dumps(args.run(args))
    except (MetastableError, ValueError) as error:  # what an attack refuses is a ValueError
        parser.exit(2, f"{error}\n")
    if path := cli.beside(args.out, ".json"):
        path.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
