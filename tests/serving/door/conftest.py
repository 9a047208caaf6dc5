from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from metastable.bundle import Bundle
from tests.serving.door.running import Running, running


def png(seed: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="package")
def served(tiny: Bundle) -> Iterator[Running]:
    """One door for all tests that leave it as it is; clients may set seeds."""
    with running(tiny) as found:
        yield found
