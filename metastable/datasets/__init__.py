"""Data sets: a table of those that their authors publish as files.

    >>> train = load("cifar10", Path("data"), "train")
    >>> train.images.shape, train.images.dtype
    (torch.Size([50000, 3, 32, 32]), torch.uint8)

A new one is one file, which reads it and describes it (`base.DataSet`), and one row of `table.DATASETS`.
"""

from metastable.datasets.base import (
    SPLITS,
    DataSet,
    ImageSet,
    Shape,
    check_labels,
    data_root,
    to_float,
)
from metastable.datasets.cifar10 import CLASSES as CIFAR10_CLASSES
from metastable.datasets.mnist import CLASSES as MNIST_CLASSES
from metastable.datasets.table import DATASETS, fitting, load, named

__all__ = [
    "CIFAR10_CLASSES",
    "DATASETS",
    "MNIST_CLASSES",
    "SPLITS",
    "DataSet",
    "ImageSet",
    "Shape",
    "check_labels",
    "data_root",
    "fitting",
    "load",
    "named",
    "to_float",
]
