"""PGD with EOT and the exact gradient through the whole purification.

The strongest white-box attack on purification that is known: evaluated so, ADP fell from its published 0.70
under BPDA+EOT to about 0.33.  `Eot` says how memory is kept flat, and where this gradient says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metastable.attacks.bpda_eot import BpdaEot
from metastable.attacks.target import Gradient


@dataclass(frozen=True, kw_only=True)
class Exact(BpdaEot):
    """BpdaEot with the exact gradient in the place of the identity; verification is the same."""

    gradient: ClassVar[Gradient] = "exact"


@dataclass(frozen=True, kw_only=True)
class Held(Exact):
    """`Exact` with ADP's step sizes held constant: less exact, less noisy, and at times stronger."""

    gradient: ClassVar[Gradient] = "held"
