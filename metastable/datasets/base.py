"""What a data set is: a row of the table, and the images that it gives."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from metastable.errors import DataError

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""
SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        classes: names in the order of the labels.
        labelled: False where nobody labelled the images: the labels are then what a classifier says of them,
            or -1.
        about: what else there is to say of how the images came to be, ready for JSON.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: list[str]
    labelled: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 over pixels and labels: names the data in model cards and result tables."""
        h = hashlib.sha256(self.images.contiguous().numpy().data)
        h.update(self.labels.numpy().tobytes())
        return h.hexdigest()

    def take(self, n: int, *, skip: int = 0, seed: int = 0) -> ImageSet:
        """Images `skip` to `skip + n` of an order that the seed fixes; fewer if there are no more.

        Equal seeds and disjoint ranges give disjoint images: tune on some, report on others.

        Raises DataError for a negative number.
        """
        check_range(n, skip)
        order = np.random.default_rng(seed).permutation(len(self))[skip : skip + n]
        pick = torch.from_numpy(order)
        return replace(self, images=self.images[pick], labels=self.labels[pick])


class Images(Protocol):
    """Images of a split that need not have been read yet: an ImageSet, or a split of a folder."""

    def __len__(self) -> int: ...

    def take(self, n: int, *, skip: int = 0, seed: int = 0) -> ImageSet:
        """As `ImageSet.take`."""

    def digest(self) -> str:
        """SHA-256 that names the data."""


def check_range(n: int, skip: int) -> None:
    """DataError for a negative number of images to take or to leave out."""
    if n < 0 or skip < 0:
        raise DataError(f"a number of images to take or to leave out cannot be negative: n {n}, skip {skip}")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set that its authors publish as files: one row of the table.

    Attributes:
        shape: of every image.
        classes: names in the order of the labels.
        mirrored: whether the mirror image of an image is one of its class, so that training may make them.
        inside: a file or folder in the data folder that is there where the data set is.
        read: (data folder, "train" or "test") to images uint8 [N, *shape] and labels [N]; raises DataError
            for files that are missing or damaged.
    """

    name: str
    shape: Shape
    classes: tuple[str, ...]
    mirrored: bool
    inside: str
    read: Callable[[Path, str], tuple[np.ndarray, np.ndarray]]

    def load(self, root: Path, split: str) -> ImageSet:
        """The images of a split in a data folder; DataError if they are absent or damaged."""
        if split not in SPLITS:
            raise DataError(f"{self.name} has no split {split!r}: use {' or '.join(SPLITS)}")
        images, labels = self.read(root, split)
        most = len(self.classes) - 1
        if len(labels) == 0 or labels.max() > most or images.shape != (len(labels), *self.shape):
            raise DataError(
                f"{self.name} {split} under {root} is damaged: no records, labels above {most}, or another "
                f"shape than {self.shape}"
            )
        found = torch.from_numpy(labels.astype(np.int64))
        return ImageSet(self.name, split, torch.from_numpy(images), found, list(self.classes))


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


def require_labels(found: ImageSet, what: str) -> None:
    """DataError where nobody labelled the images."""
    if not found.labelled:
        raise DataError(f"{what} needs labels: give --labels, a CSV file of file names and classes")


def square(shape: Shape, what: str) -> int:
    """The side of square images; DataError for others, which `what` does not take."""
    _, height, width = shape
    if height != width:
        raise DataError(f"{what} takes square images, not {height} x {width}")
    return height


def there(path: Path) -> bool:
    """Whether a file is there, packed by gzip or not."""
    return path.is_file() or _packed(path).is_file()


def content(path: Path) -> bytes:
    """What is in a file, packed by gzip or not; DataError where it is absent."""
    if path.is_file():
        return path.read_bytes()
    packed = _packed(path)
    if packed.is_file():
        return gzip.decompress(packed.read_bytes())
    raise DataError(f"{path} is missing: download the official archive and unpack it there")


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")
