"""Completion of every command and option in a shell, written once: pressing Tab starts no Python.

metastable completion bash > ~/.local/share/bash-completion/completions/metastable
metastable completion zsh > ~/.zfunc/_metastable         # a folder in $fpath
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from metastable import cli
from metastable.cli.table import Command, filler
from metastable.errors import MissingPackage


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="whose script is printed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script; commands that cannot run here are completed by their names alone."""
    top = cli.parser(_here)
    for one in every(top):
        for action in one._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(top, args.shell))
    return 0


def every(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from every(below)


def _here(command: Command) -> bool:
    try:
        filler(command)
    except MissingPackage:
        return False
    return True
