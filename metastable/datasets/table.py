"""The data sets by name.  Every command and every trainer takes what it knows of them from here."""

from __future__ import annotations

from pathlib import Path

from metastable.datasets.base import DataSet, ImageSet, Shape
from metastable.datasets.cifar10 import CIFAR10
from metastable.datasets.folder import Folder
from metastable.datasets.mnist import MNIST
from metastable.errors import DataError

DATASETS: dict[str, DataSet] = {one.name: one for one in (CIFAR10, MNIST)}


def named(name: str) -> DataSet:
    """A row of the table; DataError, which lists all, for another name."""
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}: use {' or '.join(DATASETS)}")
    return DATASETS[name]


Source = Path | Folder
"""A data folder, which holds data sets by name; or a folder of pictures, which is one itself."""


def of(name: str, data: Source) -> DataSet | Folder:
    """The data set of this name in a data folder; or the folder of pictures, whatever the name."""
    return data if isinstance(data, Folder) else named(name)


def load(name: str, data: Source, split: str) -> ImageSet:
    """The split `train` or `test` of a data set, all of it; DataError if absent or damaged.

    Args:
        data: a data folder that holds the data set; or a folder of pictures, and `name` is not asked.
    """
    if isinstance(data, Folder):
        return data.split(split).whole()
    return named(name).load(data, split)


def fitting(shape: Shape, root: Path) -> DataSet | None:
    """The first data set of images of this shape that is in the data folder, if there is one."""
    return next((d for d in DATASETS.values() if d.shape == shape and (root / d.inside).exists()), None)
