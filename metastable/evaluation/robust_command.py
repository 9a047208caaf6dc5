"""The command `robust`: its arguments, and the table that they ask for."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, get_args

from metastable import console
from metastable.attacks.catalogue import ATTACKS, SUITE
from metastable.attacks.target import Levels
from metastable.errors import DataError
from metastable.evaluation import cli, robust, robust_rows, suite, suite_report
from metastable.evaluation.groups import RobustConfig
from metastable.evaluation.portion import portion
from metastable.evaluation.robust_rows import Row

WHOLE = "suite"
EXAMPLE = f"""One command makes one table; with the same --work it goes on where it stopped:

  metastable evaluate robust --attack suite --settings fast,balanced --n 100 \\
      --eps 1/255,2/255,4/255,8/255 --work runs/suite --out docs/results/suite.json
  metastable evaluate robust --rows fast:transfer,fast:bpda-eot,fast:exact:100 --n 200 \\
      --work runs/robust --out docs/results/robust.json

{WHOLE} is several attacks on the same images, and their worst case by image: {", ".join(SUITE)}.
"""


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "robust", parents=parents, epilog=EXAMPLE, help="accuracy under attacks that know the defense"
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--attack", type=attacks, help=f"on all of --settings: {WHOLE}, or of {', '.join(ATTACKS)}"
    )
    wanted.add_argument("--rows", type=pairs, help="setting:attack or setting:attack:n, separated by commas")
    parser.add_argument(
        "--n", type=cli.from_one, default=100, help="images of a row that says no other number"
    )
    cli.attack_arguments(parser, several_radii=True)
    parser.add_argument(
        "--restarts", type=cli.from_one, help="runs from different starts (default: the attack's own)"
    )
    parser.add_argument("--loss", default="ce", choices=("ce", "margin"), help="what the attacks raise")
    parser.add_argument(
        "--members",
        type=members,
        default=SUITE,
        help=f"attacks of a {WHOLE}, in their order (default: all of them)",
    )
    parser.add_argument(
        "--levels",
        default="served",
        choices=get_args(Levels),
        help="noise that the annealed attacks expect, where the setting has two",
    )
    parser.add_argument("--bf16", action="store_true", help="gradients of the annealed attacks in bfloat16")
    parser.add_argument(
        "--bits", type=int, default=8, choices=(8, 32), help="bits a sample of the images that are judged"
    )
    parser.add_argument("--device", default="cpu", help="of the attacks, such as cuda")
    cli.add_work(parser)
    cli.add_ray(parser, device=True)
    console.idle(parser, "--settings", "--members", beside="--rows", why="which names settings and attacks")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> cli.Summary:
    """Measure the rows; write Markdown and a picture beside --out."""
    if args.ray is None:
        cli.check_device(args.device)
    loaded = cli.load_bundle(args)
    whole = args.attack == (WHOLE,)
    if len(args.eps) > 1 and not whole:
        raise DataError(f"only --attack {WHOLE} takes several radii: give one --eps")
    if args.rows:
        rows = [Row(setting, attack, n or args.n) for setting, attack, n in args.rows]
        names = cli.chosen_settings(",".join(row.setting for row in rows), loaded)
    else:
        names = cli.chosen_settings(args.settings, loaded)
        rows = [Row(setting, attack, args.n) for setting in names for attack in args.attack]
    test = cli.test_images(args, loaded)
    some = portion(test, max(row.n for row in rows), skip=args.skip)
    own = {"bundle", "data", "setting", "eps"}
    asked = [field.name for field in dataclasses.fields(RobustConfig) if field.name not in own]
    given = {name: getattr(args, name) for name in asked}
    config = RobustConfig(**given, eps=max(args.eps), data=test.digest())
    said = dataclasses.asdict(config) | {"bundle": loaded.digest}
    with cli.pool(args) as pool:
        told = {"config": said, "machine": cli.machine(args.device, pool)}
        if whole:
            given = {"device": args.device, "members": args.members, "pool": pool}
            suites = suite.measure(loaded, some, names, args.eps, config, args.work, **given)
        else:
            measured = robust.measure(loaded, some, rows, config, args.work, args.device, pool)
    if whole:
        page = cli.noted(args, suite_report.markdown(suites))
        cli.publish(args.out, page, lambda path: suite_report.draw(suites, path))
        return {"command": "robust", "suites": suites, **told}
    page = cli.noted(args, robust_rows.markdown(measured))
    cli.publish(args.out, page, lambda path: robust_rows.draw(measured, path))
    return {"command": "robust", "rows": measured, **told}


def attacks(text: str) -> tuple[str, ...]:
    """Names of attacks, separated by commas, or `suite` alone."""
    names = tuple(text.split(","))
    if names == (WHOLE,):
        return names
    if unknown := sorted(set(names) - set(ATTACKS)):
        raise argparse.ArgumentTypeError(f"there are no attacks {unknown}: choose from {', '.join(ATTACKS)}")
    return names


def members(text: str) -> tuple[str, ...]:
    """Names of attacks that a suite is to have."""
    if WHOLE in text.split(","):
        raise argparse.ArgumentTypeError(f"a {WHOLE} cannot have a {WHOLE} in it")
    return attacks(text)


def pairs(text: str) -> list[tuple[str, str, int | None]]:
    """`setting:attack` or `setting:attack:n`, separated by commas."""
    found: list[tuple[str, str, int | None]] = []
    for item in text.split(","):
        parts = item.split(":")
        if len(parts) not in (2, 3) or not parts[0] or (len(parts) == 3 and not parts[2].isdecimal()):
            raise argparse.ArgumentTypeError(f"{item!r} is not setting:attack or setting:attack:n")
        if parts[1] == WHOLE:
            raise argparse.ArgumentTypeError(f"{WHOLE} is no single row: use --attack {WHOLE}")
        attacks(parts[1])
        found.append((parts[0], parts[1], int(parts[2]) if len(parts) == 3 else None))
    if len({pair[:2] for pair in found}) < len(found):
        raise argparse.ArgumentTypeError("the same setting and attack twice")
    return found
