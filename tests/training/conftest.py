from pathlib import Path

import pytest
import torch

from metastable import datasets


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upright and level bars for digits 0 and 1: learnable in a few updates."""

    def load(name: str, root: Path, split: str) -> datasets.ImageSet:
        labels = torch.arange(64) % 2
        images = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
        images[labels == 0, :, 8:20, 12:16] = 255
        images[labels == 1, :, 12:16, 8:20] = 255
        return datasets.ImageSet(name, split, images, labels, datasets.MNIST_CLASSES)

    monkeypatch.setattr(datasets, "load", load)
