"""Metastable: purify an image with Markov chains, then classify it.

    defense = metastable.load("cifar10")
    verdicts = defense(["samples/cat.png"])

The library knows no server and no HTTP.  At every border between modules an image batch is
float32, NCHW, in [0, 1]; the range [-1, 1] exists inside the energy network only.
"""

import os
from typing import TYPE_CHECKING

from metastable.version import __version__

# ONNX Runtime reports use to its makers over the network, unless this is set before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from metastable.bringing import bring
    from metastable.library import Defense, Verdict, load

__all__ = ["Defense", "Verdict", "__version__", "bring", "load"]

if not TYPE_CHECKING:  # a type checker would take any name for granted

    def __getattr__(name: str) -> object:
        """What the library offers, when it is first asked for: PyTorch takes seconds to import."""
        if name == "bring":
            from metastable import bringing

            return bringing.bring
        if name in __all__:
            from metastable import library

            return getattr(library, name)
        raise AttributeError(f"module 'metastable' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
