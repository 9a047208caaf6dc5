"""What is looked at while an energy is trained."""

from __future__ import annotations

import pytest
import torch

from metastable.training import health


def test_summary_counts_sign_changes_of_the_last_fifth() -> None:
    record = [(1000.0, 9.0)] * 16 + [(2.0, 1.0), (-1.0, 2.0), (-1.0, 3.0), (4.0, 2.0)]
    found = health.summary(record, 12)
    assert (found["d_mean"], found["d_sign_changes"], found["d_updates"]) == (1.0, 2, 4)
    assert found["gradient_strength"] == 2.0
    assert (found["adam_updates"], found["sgd_updates"]) == (12, 8)


def test_signals_see_broken_chains() -> None:
    states = torch.tensor([0.0, 1.0, float("nan"), float("inf")]).view(1, 1, 2, 2)
    assert health.signals([(1.0, 1.0)], states)["not_finite"] == 0.5


def test_tiles_are_placed_row_by_row() -> None:
    images = torch.tensor([0.1, 0.2, 7.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    picture = health.tile(images, columns=2)
    assert picture.shape == (4, 4, 3)
    assert picture[0, 0] == pytest.approx([0.1] * 3)
    assert picture[1, 2] == pytest.approx([0.2] * 3)
    assert picture[2, 0] == pytest.approx([1.0] * 3)  # clipped, and the empty cell is white
    assert picture[3, 3] == pytest.approx([1.0] * 3)
