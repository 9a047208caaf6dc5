"""The papers' figures, measured here: `python -m metastable.evaluation figure NAME`.

Each module computes one figure, prints its numbers as one JSON line, and draws it beside --out.
"""

from __future__ import annotations

import argparse
from typing import Any

from metastable.evaluation.figures import energies, logits, lyapunov, residuals, scores, sweep


def add(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command; `parents` as of `cli.common` and `cli.chosen`."""
    figures = commands.add_parser("figure").add_subparsers(dest="figure", required=True)
    for module in (sweep, logits, energies, lyapunov, residuals, scores):
        module.add(figures, parents)
