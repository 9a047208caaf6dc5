"""Natural images to calibrate and judge artifacts with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from metastable import datasets
from metastable.datasets import Folder, to_float
from metastable.errors import DataError
from metastable.pixels import at_most

CALIBRATION, CALIBRATION_PIXELS = 64, 2**20
"""Images that 8 bits are calibrated on, and their pixels in all: each of them counts."""
JUDGED, JUDGED_PIXELS = 200, 2**21
"""Images to judge by, and their pixels in all: float64 takes its time."""


def judged(shape: datasets.Shape) -> int:
    """How many images of this shape are judged by, unless somebody says."""
    return at_most(JUDGED, shape, JUDGED_PIXELS)


def of_data(root: Path, shape: datasets.Shape, n: int) -> tuple[Tensor, Tensor]:
    """Images to calibrate on and `n` others to judge by: [N, C, H, W] in [0, 1] each.

    Args:
        root: a data folder (`metastable.datasets`), whose training split calibrates and whose test split
            judges; or any folder of pictures, half of which judges.

    Raises DataError if there are none.
    """
    if (known := datasets.fitting(shape, root)) is not None:
        train = known.load(root, "train").take(_calibration(shape))
        return to_float(train.images), to_float(known.load(root, "test").take(n).images)
    try:
        return of_folder(Folder(path=root, shape=shape, test_share=0.5), n)
    except DataError as error:
        raise DataError(f"{root} holds no known data set of images of {shape}, and {error}") from None


def of_folder(folder: Folder, n: int) -> tuple[Tensor, Tensor]:
    """The same of the splits of a folder of pictures; DataError where one of them is empty."""
    train, test = folder.split("train").take(_calibration(folder.shape)), folder.split("test").take(n)
    return to_float(train.images), to_float(test.images)


def samples(folder: Path, shape: datasets.Shape, n: int) -> Tensor:
    """`n` pictures to judge by, with none to calibrate on: [N, C, H, W] in [0, 1]."""
    return to_float(Folder(path=folder, shape=shape, test_share=1).split("test").take(n).images)


def _calibration(shape: datasets.Shape) -> int:
    return at_most(CALIBRATION, shape, CALIBRATION_PIXELS)
