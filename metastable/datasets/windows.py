"""What is drawn for a picture by its name alone: its place among the others, and windows that are cut out.

Another picture in the folder changes neither.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from metastable.images import Box


def hashed(seed: int, text: str) -> bytes:
    """SHA-256 of a seed and a text; file names need not be UTF-8."""
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "surrogateescape")).digest()


def window(seed: int, name: str, crop: int, height: int, width: int) -> Callable[[int, int], Box]:
    """What chooses, of a picture's rows and columns, window number `crop` of the proportions height : width.

    It is at least so large where the picture is, and at most as large as fits; sizes between are evenly
    likely by their logarithm, and so are all places.
    """
    rng = np.random.default_rng(np.frombuffer(hashed(seed, f"{crop} {name}"), np.uint32))

    def chosen(rows: int, columns: int) -> Box:
        most = min(rows / height, columns / width)
        scale = math.exp(rng.uniform(math.log(min(1.0, most)), math.log(most)))
        tall, wide = (max(1, min(round(scale * a), b)) for a, b in ((height, rows), (width, columns)))
        return int(rng.integers(rows - tall + 1)), int(rng.integers(columns - wide + 1)), tall, wide

    return chosen
