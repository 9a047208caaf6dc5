"""CIFAR-10, the binary version: `cifar-10-batches-bin/` in the data folder.

The training split is made of those of its five files that are there, at least one; `ImageSet.digest` tells.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metastable.datasets.base import DataSet, content, there
from metastable.errors import DataError

FOLDER = "cifar-10-batches-bin"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def read(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Of the training split whatever files are there, in order: a machine may be given a part of it."""
    folder = root / FOLDER
    names = ["test_batch.bin"]
    if split == "train":
        names = [name for i in range(1, 6) if there(folder / (name := f"data_batch_{i}.bin"))]
        if not names:
            raise DataError(
                f"{folder} has none of data_batch_1.bin to data_batch_5.bin: download the official archive "
                "and unpack it there"
            )
    parts = []
    for name in names:
        raw = np.frombuffer(content(folder / name), np.uint8)
        if raw.size % 3073:
            raise DataError(f"{folder / name} is damaged: its size is no multiple of 3 073 bytes")
        parts.append(raw.reshape(-1, 3073))  # one label byte, then 32x32 red, green, blue
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0]


CIFAR10 = DataSet(
    name="cifar10", shape=(3, 32, 32), classes=tuple(CLASSES), mirrored=True, inside=FOLDER, read=read
)
