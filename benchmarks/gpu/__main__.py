"""Work that wants a GPU: docs/gpu.md says what each piece must show."""

from __future__ import annotations

import argparse

from benchmarks.gpu import correct, energy, fast, harden, judge, kernels, loan, serve
from metastable import console

PIECES = {
    "loan": loan,
    "correct": correct,
    "fast": fast,
    "kernels": kernels,
    "harden": harden,
    "energy": energy,
    "judge": judge,
    "serve": serve,
}


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of all pieces."""
    parser.description = __doc__
    commands = parser.add_subparsers(metavar="PIECE", required=True)
    for name, module in PIECES.items():
        module.fill(commands.add_parser(name, help=(module.__doc__ or "").partition("\n")[0]))


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu")


if __name__ == "__main__":
    main()
