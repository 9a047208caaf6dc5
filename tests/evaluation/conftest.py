"""Images that the small bundle is judged on."""

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
