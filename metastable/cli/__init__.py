"""The command `metastable`: a front for the commands in `table`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from metastable import __version__, console
from metastable.cli.table import COMMANDS, GROUPS, Command, filler
from metastable.errors import MissingPackage

DESCRIPTION = """\
Metastable purifies images before it classifies them, and measures what that is worth.

`metastable COMMAND --help` says what a command takes; docs/ in the repository says what it is for."""


def parser(wanted: Callable[[Command], bool]) -> console.Parser:
    """The parser of all commands; of those that are not `wanted`, which are not imported, only the names.

    Raises what `table.filler` raises.
    """
    top = console.Parser(prog="metastable", description=DESCRIPTION)
    top.add_argument(
        "--version", action="version", version=f"metastable {__version__}", help="print it and exit"
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    groups: dict[str, Any] = {}
    for command in COMMANDS:
        *group, name = command.words
        if group and group[0] not in groups:
            one = commands.add_parser(group[0], help=GROUPS[group[0]], description=f"{GROUPS[group[0]]}.")
            groups[group[0]] = one.add_subparsers(metavar="COMMAND", required=True)
        place = groups[group[0]] if group else commands
        leaf = place.add_parser(name, help=command.summary, description=command.summary)
        if wanted(command):
            filler(command)(leaf)
    return top


def asked(words: Sequence[str]) -> Command | None:
    """The command that a command line begins with."""
    for command in COMMANDS:
        if tuple(words[: len(command.words)]) == command.words:
            return command
    return None


def main(arguments: Sequence[str] | None = None, ready: Callable[[], None] = lambda: None) -> int:
    """Run one command; the exit status.  SystemExit for help and for what argparse refuses.

    `ready` is called before it runs, when all that it needs is imported.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        one = asked(words)
        made: argparse.ArgumentParser = parser(lambda command: command is one)
    except MissingPackage as error:
        return console.wrong(str(error))
    ready()
    return console.run(made, words)
