"""The papers' figures, measured here: `metastable evaluate figure NAME`.

Each module computes one figure, prints its numbers as one JSON line, and draws it beside --out.
"""

from __future__ import annotations

import argparse
from typing import Any

from metastable.evaluation.figures import energies, logits, longrun, lyapunov, residuals, scores, sweep


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command; `parents` as of `cli.common` and `cli.chosen`."""
    one = commands.add_parser("figure", help="the papers' figures, measured here")
    figures = one.add_subparsers(metavar="FIGURE", required=True)
    for module in (sweep, logits, energies, longrun, lyapunov, residuals, scores):
        module.add(figures, parents)
