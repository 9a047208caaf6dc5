"""The common corruptions of Hendrycks and Dietterich (2019): CIFAR-10-C's files, and files of that layout.

A folder holds `<kind>.npy` for each of the 15 kinds, uint8 [5 N, 32, 32, 3], severity 1 first, and
`labels.npy`, uint8 [5 N].  The official archive has N = 10 000, all test images in their order.

`generate` writes such a folder by a package instead: `pip install imagecorruptions-imaug==1.1.5`, with OpenCV
(`opencv-python-headless` will do), scikit-image and Numba.  Its severities are those of ImageNet-C, made for
larger images: on 32 pixels they are harsher than CIFAR-10-C's, so the figures do not compare with published
ones.  `source.json` in the folder says so.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from metastable.datasets import CIFAR10_CLASSES, ImageSet
from metastable.errors import DataError, MissingPackage

KINDS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The 15 kinds by group."""
NAMES = tuple(name for group in KINDS.values() for name in group)
SEVERITIES = (1, 2, 3, 4, 5)
PACKAGE = "imagecorruptions-imaug==1.1.5"
Corrupt = Callable[[np.ndarray, str, int], np.ndarray]
"""(image uint8 [H, W, 3], kind, severity) -> the corrupted image, the same shape and type."""


def load(folder: Path, kind: str, severity: int) -> ImageSet:
    """The N images of a kind and severity, in the order of the test split.

    Raises DataError for a kind or severity that does not exist, and for a file that is missing or damaged.
    """
    if kind not in NAMES or severity not in SEVERITIES:
        raise DataError(f"there is no corruption {kind!r} of severity {severity}: use 1 to 5 of {NAMES}")
    images, labels = _read(folder / f"{kind}.npy"), _read(folder / "labels.npy")
    n = len(labels) // 5
    if labels.shape != (5 * n,) or n == 0 or labels.max() > 9:
        raise DataError(f"{folder / 'labels.npy'} must be uint8 [5 N] of labels 0 to 9, not {labels.shape}")
    if images.shape != (5 * n, 32, 32, 3):
        raise DataError(f"{folder / kind}.npy must be uint8 [{5 * n}, 32, 32, 3], not {images.shape}")
    rows = slice((severity - 1) * n, severity * n)
    pixels = torch.from_numpy(np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2)))
    named = torch.from_numpy(labels[rows].astype(np.int64))
    return ImageSet("cifar10-c", f"{kind} {severity}", pixels, named, list(CIFAR10_CLASSES))


def source(folder: Path) -> dict[str, Any]:
    """How the files were made: source.json, or that there is none."""
    path = folder / "source.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"made_by": "not stated"}
    return found


def generate(test: ImageSet, folder: Path, seed: int = 0, corrupt: Corrupt | None = None) -> None:
    """Write all kinds of `test` [N, 3, 32, 32] to the folder; kinds that are there already are kept.

    Args:
        seed: of NumPy's generator.  Two kinds, impulse noise and glass blur, do not follow it, so the files
            themselves are the record.
        corrupt: draws one image; by default the package's function.

    Raises MissingPackage without the package, and DataError for images of another shape.
    """
    if test.images.shape[1:] != (3, 32, 32):
        raise DataError(f"common corruptions need images of (3, 32, 32), not {tuple(test.images.shape[1:])}")
    draw = corrupt or _package()
    folder.mkdir(parents=True, exist_ok=True)
    clean = test.images.permute(0, 2, 3, 1).contiguous().numpy()
    np.save(folder / "labels.npy", np.tile(test.labels.numpy().astype(np.uint8), 5))
    said = {"made_by": PACKAGE, "severities": "of ImageNet-C", "images": test.digest(), "seed": seed}
    (folder / "source.json").write_text(json.dumps(said) + "\n")
    for number, kind in enumerate(tqdm(NAMES, desc="corruptions", mininterval=2)):
        path = folder / f"{kind}.npy"
        if path.exists():
            continue
        np.random.seed(seed + number)  # noqa: NPY002, the package draws from NumPy's global generator
        made = np.stack([draw(image, kind, severity) for severity in SEVERITIES for image in clean])
        half = path.with_suffix(".half")
        with half.open("wb") as file:
            np.save(file, made)
        half.replace(path)


def _package() -> Corrupt:
    try:
        package = importlib.import_module("imagecorruptions")
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"drawing corruptions needs {error.name}: pip install {PACKAGE}, or read the official files"
        ) from None

    def corrupt(image: np.ndarray, kind: str, severity: int) -> np.ndarray:
        made: np.ndarray = package.corrupt(image, severity=severity, corruption_name=kind)
        return made

    return corrupt


def _read(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: unpack the official CIFAR-10-C archive there") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if found.dtype != np.uint8:
        raise DataError(f"{path} must be uint8, not {found.dtype}")
    return found
