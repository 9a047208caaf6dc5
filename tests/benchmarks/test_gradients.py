import pytest
import torch

from benchmarks import gradients
from metastable import bundle, datasets

pytestmark = pytest.mark.slow


def test_cosines_are_to_the_exact_gradient_of_the_same_noise(tiny: bundle.Bundle) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=rng)
    some = datasets.ImageSet("noise", "train", images, torch.tensor([1, 2]), [])
    rows = gradients.measure(tiny, some, "fast", samples=2, rounds=2)
    assert [(row["gradient"], row["precision"]) for row in rows] == [
        ("exact", "f32"), ("held", "f32"), ("exact", "bf16"), ("held", "bf16")
    ]  # fmt: skip
    exact, held, _, rounded = rows
    assert exact["cosine"] == exact["time"] == 1
    assert 0.9 < held["cosine"] <= 1  # a step of this tiny network hardly depends on its size
    assert rounded["cosine"] > 0.5
    assert all(row["time"] > 0 for row in rows)
