"""Data sets: a table of those that their authors publish as files, and folders of pictures.

    >>> train = load("cifar10", Path("data"), "train")
    >>> train.images.shape, train.images.dtype
    (torch.Size([50000, 3, 32, 32]), torch.uint8)

A new one is one file, which reads it and describes it (`base.DataSet`), and one row of `table.DATASETS`.  A
folder of pictures (`folder.Folder`) takes the place of a data folder wherever a data set is loaded.
"""

from metastable.datasets.base import (
    SPLITS,
    DataSet,
    Images,
    ImageSet,
    Shape,
    check_labels,
    data_root,
    require_labels,
    square,
    to_float,
)
from metastable.datasets.cifar10 import CLASSES as CIFAR10_CLASSES
from metastable.datasets.folder import Folder
from metastable.datasets.mnist import CLASSES as MNIST_CLASSES
from metastable.datasets.table import DATASETS, Source, fitting, load, named, of

__all__ = [
    "CIFAR10_CLASSES",
    "DATASETS",
    "MNIST_CLASSES",
    "SPLITS",
    "DataSet",
    "Folder",
    "ImageSet",
    "Images",
    "Shape",
    "Source",
    "check_labels",
    "data_root",
    "fitting",
    "load",
    "named",
    "of",
    "require_labels",
    "square",
    "to_float",
]
