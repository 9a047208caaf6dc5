"""Images that the small bundle is judged on."""

from pathlib import Path

import pytest
import torch

from metastable import bundle, datasets


@pytest.fixture
def test_set(tiny: bundle.Bundle) -> datasets.ImageSet:
    """Noise, labelled so that the bare classifier is right on all but the first."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        labels = tiny.classifier(datasets.to_float(images)).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return datasets.ImageSet("noise", "test", images, labels, list(datasets.CIFAR10_CLASSES))


@pytest.fixture
def pictures(test_set: datasets.ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test set in the place of every data set that a command names."""
    monkeypatch.setattr(datasets, "load", lambda *_: test_set)
    monkeypatch.setenv("METASTABLE_DATA", str(tmp_path))
