"""Natural images to calibrate and judge artifacts with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from metastable import datasets
from metastable.datasets import to_float
from metastable.errors import DataError, MetastableError
from metastable.images import decode

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
CALIBRATION = 64
"""Images that 8 bits are calibrated on."""


def of_data(root: Path, shape: tuple[int, int, int], n: int) -> tuple[Tensor, Tensor]:
    """Images to calibrate on and `n` others to judge by: [N, C, H, W] in [0, 1] each.

    Args:
        root: a data folder (`metastable.datasets`), whose training split calibrates and whose test split
            judges; or any folder of pictures, every other one of which judges.

    Raises DataError if there are none.
    """
    if (known := datasets.fitting(shape, root)) is not None:
        train = known.load(root, "train").take(CALIBRATION)
        test = known.load(root, "test").take(n)
        return to_float(train.images), to_float(test.images)
    pictures = of_folder(root, shape, CALIBRATION + n)
    if len(pictures) < 2:
        raise DataError(f"{root} holds neither a known data set of images of {shape} nor two pictures")
    return pictures[::2][:CALIBRATION], pictures[1::2][:n]


def of_folder(folder: Path, shape: tuple[int, int, int], most: int) -> Tensor:
    """The pictures in a folder by name, resized where they must be: [N, C, H, W] in [0, 1].

    Raises DataError naming a picture that cannot be read, or the folder if it has none.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)[:most]
    if not paths:
        raise DataError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    found = []
    for path in tqdm(paths, desc="pictures", mininterval=2):
        try:
            found.append(decode(path.read_bytes(), size=shape[1], channels=shape[0]).pixels)
        except (OSError, MetastableError) as error:
            raise DataError(f"{path} cannot be used: {error}") from None
    return torch.stack(found)
