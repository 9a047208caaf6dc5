"""Measure what the defense is worth; `calibrate` changes a bundle.  The last line printed is JSON."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from metastable import console, datasets
from metastable.console import beside
from metastable.datasets import Folder
from metastable.evaluation import (
    calibrated,
    certified,
    cli,
    controls,
    corrupted,
    denoising,
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
from metastable.evaluation.portion import portion


def measure_latency(args: argparse.Namespace) -> dict[str, Any]:
    loaded = cli.load_bundle(args)
    names = cli.chosen_settings(args.settings, loaded)
    pictures = Folder(path=args.folder or Path("samples"), shape=loaded.shape, fit=loaded.fit, test_share=1)
    images = datasets.to_float(pictures.split("test").whole().images)
    rows = latency.measure(loaded, images, names, args.rounds)
    for row in rows:
        print(f"{row['setting']:<16}{row['median_ms']:>9.1f} ms  (p90 {row['p90_ms']:.1f})")
    return {"command": "latency", "rows": rows, "machine": machine()}


def make_table(args: argparse.Namespace) -> dict[str, Any]:
    loaded = cli.load_bundle(args)
    test = portion(cli.test_images(args, loaded), args.n, skip=args.skip)
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
    summary |= {
        "command": "table",
        "config": dataclasses.asdict(config),
        "machine": machine(),
    }
    text = cli.noted(args, report.markdown(summary))
    lines = outcomes.read_outcomes(args.work / "outcomes.jsonl")
    if (page := beside(args.out, ".md")) and (picture := beside(args.out, ".png")):
        page.write_text(text)
        report.draw(summary, lines, loaded.calibration.threshold, picture)
    print(text)
    return summary


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of the measurements."""
    parser.description = "Measure what the defense is worth.  The last line printed is JSON."
    add_measurements(parser)


def add_measurements(parser: argparse.ArgumentParser) -> Any:
    """Add the measurements as subcommands, and return their group."""
    common, chosen = cli.common(), cli.chosen()
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    one = commands.add_parser(
        "table",
        parents=[common, chosen],
        help="natural and transfer-PGD accuracy of settings, with detection",
    )
    one.add_argument("--n", type=int, default=1000, help="test images")
    cli.add_skip(one)
    one.add_argument("--attack-steps", type=int, default=20, help="of PGD on the bare classifier")
    one.add_argument("--seed", type=console.seed, default=0, help="of attack and chains")
    cli.add_work(one)
    one.set_defaults(run=make_table)
    one = commands.add_parser(
        "latency",
        parents=[common, chosen],
        help="milliseconds of one image at a time, of --images or samples/, without a server",
    )
    one.add_argument("--rounds", type=int, default=5, help="times that every image is answered")
    cli.no_data(one, "where --images, or samples/, is taken whole", "--images")
    one.set_defaults(run=measure_latency)
    robust_command.add(commands, [common, chosen])
    controls.add(commands, [common])
    resubmit.add(commands, [common, chosen])
    honest.add(commands, [common, chosen])
    corrupted.add(commands, [common, chosen])
    figures.add(commands, [common, chosen])
    certified.add(commands, [common, chosen])
    denoising.add(commands)
    return commands


def _fill_all(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    calibrated.fill(add_measurements(parser).add_parser("calibrate", help=calibrated.SUMMARY))


def main() -> None:
    console.main(_fill_all, "python -m metastable.evaluation")


if __name__ == "__main__":
    main()
