"""The command `robust`: its arguments, and the table that they ask for."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from metastable.attacks.catalogue import NAMES
from metastable.evaluation import cli, robust, robust_rows
from metastable.evaluation.robust_rows import Row

EXAMPLE = """One command makes one table; with the same --work it goes on where it stopped:

  python -m metastable.evaluation robust --rows fast:transfer,fast:bpda-eot,fast:exact:100 --n 200 \\
      --work runs/robust --out docs/results/robust.json
"""


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "robust", parents=parents, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--attack", type=attacks, help=f"on all of --settings, of {', '.join(NAMES)}")
    wanted.add_argument("--rows", type=pairs, help="setting:attack or setting:attack:n, separated by commas")
    parser.add_argument("--n", type=int, default=100, help="images of a row that says no other number")
    cli.attack_arguments(parser)
    parser.add_argument("--restarts", type=int, default=1, help="runs from different starts")
    parser.add_argument("--loss", default="ce", choices=("ce", "margin"))
    parser.add_argument("--device", default="cpu", help="of attack and defense, such as cuda")
    parser.add_argument("--work", type=Path, required=True, help="folder of the outcomes; resumed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Measure the rows; write Markdown and a picture beside --out."""
    loaded = cli.load_bundle(args)
    if args.rows:
        rows = [Row(setting, attack, n or args.n) for setting, attack, n in args.rows]
        cli.chosen_settings(",".join(row.setting for row in rows), loaded)
    else:
        names = cli.chosen_settings(args.settings, loaded)
        rows = [Row(setting, attack, args.n) for setting in names for attack in args.attack]
    test = cli.test_images(args, loaded)
    own = {"bundle", "data", "setting"}
    asked = [field.name for field in dataclasses.fields(robust.RobustConfig) if field.name not in own]
    config = robust.RobustConfig(**{name: getattr(args, name) for name in asked}, data=test.digest())
    measured = robust.measure(
        loaded, test.take(max(row.n for row in rows), skip=args.skip), rows, config, args.work, args.device
    )
    text = robust_rows.markdown(measured)
    if (page := cli.beside(args.out, ".md")) and (picture := cli.beside(args.out, ".png")):
        page.write_text(text)
        robust_rows.draw(measured, picture)
    print(text)
    return {
        "command": "robust",
        "rows": measured,
        "config": dataclasses.asdict(config) | {"bundle": loaded.digest},
        "machine": cli.machine(),
    }


def attacks(text: str) -> tuple[str, ...]:
    """Names of attacks, separated by commas."""
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(NAMES)):
        raise argparse.ArgumentTypeError(f"there are no attacks {unknown}: choose from {', '.join(NAMES)}")
    return names


def pairs(text: str) -> list[tuple[str, str, int | None]]:
    """`setting:attack` or `setting:attack:n`, separated by commas."""
    found: list[tuple[str, str, int | None]] = []
    for item in text.split(","):
        parts = item.split(":")
        if len(parts) not in (2, 3) or not parts[0] or (len(parts) == 3 and not parts[2].isdecimal()):
            raise argparse.ArgumentTypeError(f"{item!r} is not setting:attack or setting:attack:n")
        attacks(parts[1])
        found.append((parts[0], parts[1], int(parts[2]) if len(parts) == 3 else None))
    if len({pair[:2] for pair in found}) < len(found):
        raise argparse.ArgumentTypeError("the same setting and attack twice")
    return found
