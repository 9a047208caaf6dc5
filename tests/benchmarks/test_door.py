from __future__ import annotations

import pytest

from benchmarks import door
from metastable.bundle import Bundle
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import MetastableError
from tests.serving.door.conftest import png

pytestmark = pytest.mark.slow


def test_both_ways_are_timed(tiny: Bundle) -> None:
    runner = TorchRunner(tiny.networks, tiny.classifier)
    found = door.measure(tiny, runner, png(), "none", pairs=5, rounds=2, at_once=3)
    assert found["ms_direct"] > 0
    assert len(found["throughputs"]) == 2
    assert all(ratio > 0 for ratio in found["throughputs"])
    assert found["ms_added_quartiles"][0] <= found["ms_added"] <= found["ms_added_quartiles"][1]


def test_an_unknown_setting_is_refused(tiny: Bundle) -> None:
    runner = TorchRunner(tiny.networks, tiny.classifier)
    with pytest.raises(MetastableError, match="--setting must be one of none, fast"):
        door.measure(tiny, runner, png(), "x", pairs=1, rounds=1, at_once=1)
