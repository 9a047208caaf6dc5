from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scaling, scaling_costs
from metastable import bundle
from metastable.bundle import Bundle
from metastable.engine import assembly
from metastable.engine.costs import CLASSIFY, LOOK
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import DataError
from tests.launched import REPOSITORY


def test_costs_are_the_least_of_several_and_survive_their_file(tiny: Bundle, tmp_path: Path) -> None:
    runner = TorchRunner(tiny.networks, tiny.classifier)
    settings = [tiny.settings[name] for name in ("none", "fast")]
    found = scaling_costs.record(tiny, runner, settings, 2, name="torch", machine="this one")
    assert set(found.curves) == {CLASSIFY, LOOK, "fast"}
    assert all(set(curve) == set(assembly.SIZES) for curve in found.curves.values())
    found.write(path := tmp_path / "deep" / "costs.json")
    assert scaling_costs.read(path) == found
    costs = found.costs(settings)
    kind = tiny.settings["fast"].dynamics.kind
    assert kind is not None
    assert costs.seconds(kind, 8) == found.curves["fast"][8] > 0
    costs.observe(kind, 8, 100.0)
    assert found.costs(settings).seconds(kind, 8) == found.curves["fast"][8]


def test_the_least_counts(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = iter([{1: 3.0}, {1: 2.0}, {1: 4.0}])
    monkeypatch.setattr(assembly, "SIZES", (1,))
    monkeypatch.setattr(
        assembly,
        "measured",
        lambda *given, **more: scaling_costs.Costs(dict.fromkeys((CLASSIFY, LOOK), next(curves))),
    )
    runner = TorchRunner(tiny.networks, tiny.classifier)
    found = scaling_costs.record(tiny, runner, [tiny.settings["none"]], 3, name="torch", machine="")
    assert found.curves == {CLASSIFY: {1: 2.0}, LOOK: {1: 2.0}}


def test_what_is_no_record_is_refused(tiny: Bundle, tmp_path: Path) -> None:
    (path := tmp_path / "costs.json").write_text('{"curves": 3}')
    for one in (path, tmp_path / "missing.json"):
        with pytest.raises(DataError, match="--record"):
            scaling_costs.read(one)
    bare = scaling_costs.Recorded("tiny", "torch", "", 1, {CLASSIFY: {1: 1.0}, LOOK: {1: 1.0}})
    with pytest.raises(DataError, match="setting fast"):
        bare.costs([tiny.settings["fast"]])


def test_the_record_that_is_kept_is_of_the_shipped_bundle() -> None:
    found = scaling_costs.read(REPOSITORY / "docs" / "results" / "scaling-costs.json")
    loaded = bundle.load(REPOSITORY / "model_store" / "cifar10")
    assert found.bundle == loaded.name
    found.costs(loaded.settings[name] for name in scaling.SETTINGS)
