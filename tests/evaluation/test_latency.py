import pytest
import torch

from metastable import bundle
from metastable.evaluation import latency

pytestmark = pytest.mark.slow


def test_every_setting_is_timed_on_every_image_after_a_warm_up(tiny: bundle.Bundle) -> None:
    rows = latency.measure(tiny, torch.rand(2, 3, 32, 32), ("none", "fast"), rounds=3)
    assert [(row["setting"], row["n"]) for row in rows] == [("none", 6), ("fast", 6)]
    assert all(0 < row["median_ms"] <= row["p90_ms"] for row in rows)
