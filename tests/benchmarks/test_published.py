from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import published
from metastable import bundle as bundles
from metastable.errors import DataError
from tests.conftest import write_tiny
from tests.launched import PATIENCE
from tests.serving.door.conftest import png

SETTINGS = """
default: long
caps: {chains: 8, steps: 20}
settings:
  none: {dynamics: none}
  long: {dynamics: langevin, network: energy, chains: 8, steps: 20, tau: 0.01, delta: 0.01}
"""


@pytest.mark.server
@pytest.mark.timeout(2 * PATIENCE)
def test_both_ways_answer(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bundle", settings=SETTINGS)
    found = published.measure(folder, [png(), png()], tmp_path / "w", "long", rounds=2, chains=4)
    assert (found["K"], found["H_published"], found["at_once"]) == (20, 4, 2)
    for row in found["rows"]:
        assert row["ratio"] == pytest.approx(row["published_s"] / row["served_s"], rel=0.2)
    with pytest.raises(DataError, match="none is not of Langevin"):
        published.measure(folder, [png()], tmp_path / "x", "none", rounds=1, chains=4)


def test_the_loop_is_what_its_steps_cost_times_their_number(tiny: bundles.Bundle) -> None:
    x = torch.rand(2, *tiny.shape)
    short, long = (
        published._loop(tiny.networks["energy"], tiny.classifier, x, count) for count in (1, 4_000)
    )
    assert long > 50 * short
