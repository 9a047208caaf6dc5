"""MNIST: `MNIST/raw/` in the data folder, its four files packed or not."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from metastable.datasets.base import DataSet, content
from metastable.errors import DataError

CLASSES = [str(digit) for digit in range(10)]


def read(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    folder, stem = root / "MNIST" / "raw", "train" if split == "train" else "t10k"
    images = _idx(folder / f"{stem}-images-idx3-ubyte", 3)
    labels = _idx(folder / f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise DataError(f"MNIST {split}: {len(images)} images but {len(labels)} labels")
    return images[:, None].copy(), labels


def _idx(path: Path, dims: int) -> np.ndarray:
    raw = content(path)
    header = 4 * (1 + dims)
    if len(raw) < header or struct.unpack(">I", raw[:4])[0] != 0x800 + dims:
        raise DataError(f"{path} is not an IDX file of {dims} dimensions")
    shape = struct.unpack(f">{dims}I", raw[4:header])
    if len(raw) - header != int(np.prod(shape)):
        raise DataError(f"{path} is damaged: {len(raw) - header} bytes for shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


# Digits have no mirror images.
MNIST = DataSet(
    name="mnist", shape=(1, 28, 28), classes=tuple(CLASSES), mirrored=False, inside="MNIST", read=read
)
