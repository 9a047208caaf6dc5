from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hop
from tests.launched import PATIENCE
from tests.serving.door.conftest import png


@pytest.mark.server
@pytest.mark.timeout(2 * PATIENCE)
def test_both_ways_answer(tiny_folder: Path, tmp_path: Path) -> None:
    found = hop.measure(tiny_folder, png(), tmp_path / "w", "none", pairs=4, rounds=1, at_once=2)
    assert min(found["median_ms"].values()) > 0
    assert found["throughput_ratio"] == found["throughput_ratios"][0] > 0


def test_the_folder_of_sockets_is_in_the_configuration() -> None:
    text = "a=b\ninference_address=unix:/run/a b/tmp/inference.sock\nc=d\n"
    assert hop.scratch_of(text) == Path("/run/a b/tmp")
