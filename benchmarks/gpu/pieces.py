"""The pieces of a loan of a GPU, in the order of their value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from metastable.errors import MetastableError

LIBRARY = "eager autograd;graphs f16;graphs bf16;graphs tf32"
OWN = "eager autograd;graphs f16;own kernels;own kernels, 192 at a time"


@dataclass(frozen=True)
class Piece:
    """One line of the order of value.

    Attributes:
        minutes: that it may take at most, and only of what the training behind it does not need.
        module: run with `python -m`; a piece whose module is not there is left out.
        arguments: its command line, with {data}, {bundle}, {device} and {minutes} of the loan, {folder} for
            the piece's own folder, of which result.json is read, and {work} for what outlives a loan.
        tiny: what the rehearsal adds to that.
        flags: what comes after `--`, for its trainer; the loan's --flags replace them.
        tiny_flags: what the rehearsal adds to those.
        share: of the whole loan, kept for it until its turn comes; it then has its part of all that is left.
        back: patterns of files in the folder that are handed back in one archive, the most important first.
        apart: patterns of those that are too large for it.
    """

    name: str
    module: str
    arguments: str
    minutes: float = 0.0
    tiny: str = "--tiny"
    flags: str = ""
    tiny_flags: str = ""
    share: float = 0.0
    back: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


RESULT = "--bundle {bundle} --device {device} --out {folder}/result.json"
TRAINING = "--data {data} --device {device} --minutes {minutes}"
PIECES = (
    Piece("correct", "benchmarks.gpu.correct", RESULT, 1.0),
    Piece(
        "fast",
        "benchmarks.gpu.fast",
        f"{RESULT} --sizes 100,6000 --only '{LIBRARY}'",
        1.5,
        "--tiny --sizes 1,2",
    ),
    Piece(
        "own", "benchmarks.gpu.fast", f"{RESULT} --sizes 100,6000 --only '{OWN}'", 1.25, "--tiny --sizes 2"
    ),
    Piece("profile", "benchmarks.gpu.kernels", f"{RESULT} --sizes 100,6000", 0.75, "--tiny --sizes 2"),
    Piece(
        "harden",
        "benchmarks.gpu.harden",
        f"train {TRAINING} --run {{work}}/harden --out {{folder}}",
        flags="--bundle {bundle} --sigma 0.05 --compile --ema 0.998 --check-every 1000",
        tiny_flags="--no-compile",
        share=0.375,
        back=("*.safetensors*", "*.json", "*.jsonl", "*.png"),
    ),
    Piece(
        "energy",
        "benchmarks.gpu.energy",
        f"--bundle {{bundle}} --out {{folder}}/result.json {TRAINING} --run {{folder}}",
        share=0.25,
        back=("weights-fp16*", "config.json", "so-far.json", "metrics.json", "log.jsonl", "*.png"),
        apart=("checkpoint.pt*",),
    ),
    Piece(
        "serve",
        "benchmarks.gpu.serve",
        f"{RESULT} --settings fast --seconds 5",
        1.5,
        "--tiny --settings fast",
    ),
)


def chosen(only: str | None, flags: Sequence[str] = ()) -> tuple[Piece, ...]:
    """The pieces of these names, in the order given; all without names.

    Args:
        flags: NAME=FLAGS of a piece's trainer, in place of its own.

    Raises MetastableError for the name of no piece, and for flags of one that has no trainer.
    """
    by_name = {piece.name: piece for piece in PIECES}
    names = only.split(",") if only else list(by_name)
    if unknown := [name for name in names if name not in by_name]:
        raise MetastableError(f"no piece {', '.join(unknown)}: choose from {', '.join(by_name)}")
    for given in flags:
        name, equals, text = given.partition("=")
        trainers = [piece.name for piece in PIECES if piece.share]
        if not equals or name not in trainers:
            raise MetastableError(
                f"--flags takes NAME=FLAGS with NAME of {', '.join(trainers)}, not {given!r}"
            )
        by_name[name] = dataclasses.replace(by_name[name], flags=text)
    return tuple(by_name[name] for name in names)
