"""CIFAR-10 and MNIST, read from the files that their authors publish.

    >>> train = load("cifar10", Path("data"), "train")
    >>> train.images.shape, train.images.dtype
    (torch.Size([50000, 3, 32, 32]), torch.uint8)

`root` is the folder that holds `cifar-10-batches-bin/` (the binary version) or `MNIST/raw/`.  CIFAR-10's
training split is made of those of its five files that are there, at least one; `ImageSet.digest` tells.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metastable.errors import DataError

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MNIST_CLASSES = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: `images` uint8 [N, C, H, W], `labels` int64 [N], class names in order."""

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 over pixels and labels: names the data in model cards and result tables."""
        h = hashlib.sha256(self.images.numpy().tobytes())
        h.update(self.labels.numpy().tobytes())
        return h.hexdigest()

    def take(self, n: int, *, skip: int = 0, seed: int = 0) -> ImageSet:
        """Images `skip` to `skip + n` of an order that the seed fixes; fewer if there are no more.

        Equal seeds and disjoint ranges give disjoint images: tune on some, report on others.

        Raises DataError for a negative number.
        """
        if n < 0 or skip < 0:
            raise DataError(
                f"a number of images to take or to leave out cannot be negative: n {n}, skip {skip}"
            )
        order = np.random.default_rng(seed).permutation(len(self))[skip : skip + n]
        pick = torch.from_numpy(order)
        return ImageSet(self.name, self.split, self.images[pick], self.labels[pick], self.classes)


def to_float(images: Tensor) -> Tensor:
    """uint8 [..] in 0..255 to float32 in [0, 1]."""
    return images.float() / 255.0


def data_root(given: str | Path | None = None) -> Path:
    """The data folder: the one given, else the environment variable METASTABLE_DATA.

    Raises DataError if neither names a folder.
    """
    value = given or os.environ.get("METASTABLE_DATA")
    if not value or not Path(value).is_dir():
        raise DataError(
            "no data folder: pass --data or set METASTABLE_DATA to the folder that holds "
            "cifar-10-batches-bin/ and MNIST/raw/"
        )
    return Path(value)


def check_labels(found: ImageSet, classes: int, whose: str) -> None:
    """DataError if labels are none of the first `classes` classes, those that `whose` classifier knows."""
    if (most := int(found.labels.max())) >= classes:
        raise DataError(
            f"{whose} knows {classes} classes, and {found.name} has labels up to {most}: give it images of "
            "its own classes, in the format of that data set"
        )


def load(name: str, root: Path, split: str) -> ImageSet:
    """Load `cifar10` or `mnist`, split `train` or `test`; DataError if absent or damaged."""
    loaders = {"cifar10": _load_cifar10, "mnist": _load_mnist}
    if name not in loaders or split not in ("train", "test"):
        raise DataError(f"no data set {name!r} with split {split!r}: use cifar10 or mnist, train or test")
    images, labels, classes = loaders[name](root, split)
    if len(labels) == 0 or labels.max() > 9:
        raise DataError(f"{name} {split} under {root} is damaged: no records, or labels above 9")
    return ImageSet(name, split, torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), classes)


def _load_cifar10(root: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Of the training split whatever files are there, in order: a machine may be given a part of it."""
    folder = root / "cifar-10-batches-bin"
    names = ["test_batch.bin"]
    if split == "train":
        names = [name for i in range(1, 6) if _there(folder / (name := f"data_batch_{i}.bin"))]
        if not names:
            raise DataError(
                f"{folder} has none of data_batch_1.bin to data_batch_5.bin: download the official archive "
                "and unpack it there"
            )
    parts = []
    for name in names:
        raw = np.frombuffer(_read(folder / name), np.uint8)
        if raw.size % 3073:
            raise DataError(f"{folder / name} is damaged: its size is no multiple of 3 073 bytes")
        parts.append(raw.reshape(-1, 3073))  # one label byte, then 32x32 red, green, blue
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0], list(CIFAR10_CLASSES)


def _load_mnist(root: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    folder, stem = root / "MNIST" / "raw", "train" if split == "train" else "t10k"
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte", 3)
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise DataError(f"MNIST {split}: {len(images)} images but {len(labels)} labels")
    return images[:, None].copy(), labels, list(MNIST_CLASSES)


def _read_idx(path: Path, dims: int) -> np.ndarray:
    raw = _read(path)
    header = 4 * (1 + dims)
    if len(raw) < header or struct.unpack(">I", raw[:4])[0] != 0x800 + dims:
        raise DataError(f"{path} is not an IDX file of {dims} dimensions")
    shape = struct.unpack(f">{dims}I", raw[4:header])
    if len(raw) - header != int(np.prod(shape)):
        raise DataError(f"{path} is damaged: {len(raw) - header} bytes for shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def _there(path: Path) -> bool:
    return path.is_file() or _packed(path).is_file()


def _read(path: Path) -> bytes:
    if path.is_file():
        return path.read_bytes()
    packed = _packed(path)
    if packed.is_file():
        return gzip.decompress(packed.read_bytes())
    raise DataError(f"{path} is missing: download the official archive and unpack it there")
