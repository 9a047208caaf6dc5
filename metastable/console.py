"""What every command shares: one style of help, one way to end, and a sign of life.

A command is a function `fill(parser)`.  It describes the parser, adds arguments or subcommands, and sets
these defaults, of which only the first is needed:

    run           called with the parsed arguments; gives a dict, printed as a line of JSON, or a status
    status        called with that dict; gives the exit status (0 without it)
    out_is_line   True where --out names a file for that line (`add_out`)
    resumes       name of the argument that holds a run folder, from which the same command goes on
    rest          [] where the command takes what stands after `--`
    tells         True where the command says by itself how far it is
    adds          a dict that is added to that dict; the command sets it while it runs
    idle          options that would be taken and not used (`idle`)

Exit status: 0, what `status` says, 2 for wrong input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from metastable.errors import MetastableError

WRONG, STOPPED, UNHEARD = 2, 130, 141
"""Exit status for wrong input, after Ctrl-C, and (as shells count signals) where nobody reads the output."""
SIGNS = (2.0, 10.0, 30.0, 60.0)
"""Seconds after which a command without a progress bar says that it is at work; then every minute."""

Fill = Callable[[argparse.ArgumentParser], None]
Result = dict[str, Any] | int


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written; every default that says something is shown."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        silent = (
            default is None or isinstance(default, bool | list | tuple) or default in ("", "==SUPPRESS==")
        )
        if silent or not action.option_strings or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser in the style of all commands; its subcommands are of the same kind.

    Options are written out: one that is added later must not make an abbreviation in a script ambiguous.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **given})

    def error(self, message: str) -> NoReturn:
        """One sentence, and status 2."""
        self.exit(WRONG, f"error: {message} (see `{self.prog} --help`)\n")


def add_out(parser: argparse.ArgumentParser, text: str = "write the line of JSON here as well") -> None:
    """The argument --out of a command that measures."""
    parser.add_argument("--out", type=Path, help=text)
    parser.set_defaults(out_is_line=True)


def _no_line(out: Path) -> str | None:
    """Why a line of JSON cannot go into --out, before anything is computed; None if it can."""
    if out.is_dir():
        return f"--out {out} is a folder: name a file in it, such as {out / 'result.json'}"
    if out.suffix not in ("", ".json"):
        return f"--out {out} gets a line of JSON: name it {out.name}.json, or another name in .json"
    return None


def seed(text: str) -> int:
    """The type of options that are seeds; ArgumentTypeError for what is no whole number in [0, 2^63)."""
    found = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
    if not 0 <= found < 2**63:
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to 2^63 - 1, not {text!r}")
    return found


class Idle(NamedTuple):
    """Options that would be taken and not used: beside another, without another, or in this command."""

    options: tuple[str, ...]
    beside: str
    without: str
    why: str

    def fault(self, given: Collection[str]) -> str | None:
        """One sentence on those of the options `given` that would be idle; None where none is."""
        named = [option for option in self.options if option in given]
        fits = self.beside not in given if self.beside else self.without in given
        if not named or fits:
            return None
        where = "here"
        if self.beside or self.without:
            where = f"beside {self.beside}" if self.beside else f"without {self.without}"
        verb, them = ("says", "it") if len(named) == 1 else ("say", "them")
        why = f", {self.why}" if self.why else ""
        mend = f"leave {them} out" + (f", or give {self.without}" if self.without else "")
        return f"{' and '.join(named)} {verb} nothing {where}{why}: {mend}"


def idle(
    parser: argparse.ArgumentParser, *options: str, beside: str = "", without: str = "", why: str = ""
) -> None:
    """Let `options` be refused beside one option, or without one, or always: they would do nothing.

    `why` is a subordinate clause for the message.
    """
    before = parser.get_default("idle") or ()
    parser.set_defaults(idle=(*before, Idle(options, beside, without, why)))


def beside(out: Path | None, suffix: str) -> Path | None:
    """The path of --out with another suffix, its folder made; None without --out."""
    if out is None:
        return None
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_suffix(suffix)


def main(fill: Fill, prog: str, arguments: Sequence[str] | None = None) -> None:
    """A command as a program of its own; raises SystemExit for a status other than 0."""
    parser = Parser(prog=prog)
    fill(parser)
    if status := run(parser, arguments):
        sys.exit(status)


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and end: the exit status.  What the user can mend is one sentence on stderr."""
    args = parse(parser, sys.argv[1:] if arguments is None else arguments)
    if getattr(args, "out_is_line", False) and args.out is not None and (fault := _no_line(args.out)):
        return wrong(fault)
    try:
        with contextlib.nullcontext() if getattr(args, "tells", False) else _signs(parser.prog):
            result: Result = args.run(args)
        if isinstance(result, int):
            return result
        line = json.dumps(result := result | getattr(args, "adds", {}))
        if getattr(args, "out_is_line", False) and (path := beside(args.out, ".json")):
            path.write_text(line + "\n")
        print(line, flush=True)
        return int(args.status(result)) if hasattr(args, "status") else 0
    except KeyboardInterrupt:
        return stopped(args)
    except BrokenPipeError:
        # Python writes what is left at its end, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNHEARD
    except OSError as error:
        return wrong(
            f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        )
    except (MetastableError, ValueError) as error:  # a value that a configuration refuses is a ValueError
        return wrong(str(error))


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The arguments; what stands after `--` is left to a command whose default `rest` asks for it.

    SystemExit for what argparse refuses, and for options that would be idle.
    """
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    given = {word.partition("=")[0] for word in words[:cut]}  # written out, as nothing is abbreviated
    for one in getattr(args, "idle", ()):
        if fault := one.fault(given):
            parser.error(fault)
    if cut < len(words):
        if not hasattr(args, "rest"):
            parser.error("this command takes nothing after --")
        args.rest = list(words[cut + 1 :])
    return args


def wrong(message: str) -> int:
    """Say what was wrong; the status for it."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return WRONG


def stopped(args: argparse.Namespace) -> int:
    """Say that a command was stopped, and how it goes on if it can; the status for it."""
    folder = getattr(args, getattr(args, "resumes", ""), None)
    rest = f": the same command goes on from what is in {folder}" if folder else ""
    print(f"\nstopped{rest}", file=sys.stderr, flush=True)
    return STOPPED


@contextlib.contextmanager
def _signs(name: str) -> Iterator[None]:
    """Lines on stderr while the work inside lasts and shows no progress bar."""
    over, started = threading.Event(), time.monotonic()

    def watch() -> None:
        marks = iter(SIGNS)
        mark = next(marks)
        while not over.wait(started + mark - time.monotonic()):
            if not _bars():
                print(f"{name}: at work for {mark:.0f} s", file=sys.stderr, flush=True)
            mark = next(marks, mark + 60)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _bars() -> bool:
    """Whether a progress bar is on the screen."""
    module = sys.modules.get("tqdm")
    return module is not None and bool(getattr(module.tqdm, "_instances", ()))
