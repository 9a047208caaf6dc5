"""What `steps` measures is what the bundle has."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from benchmarks import steps
from metastable.bundle import Bundle


def test_a_bundle_without_an_energy_has_no_langevin_steps(tiny: Bundle) -> None:
    whole = steps.works(tiny)
    assert set(whole) == {"langevin", "adp", "classify"}
    without = replace(tiny, networks={"score": tiny.networks["score"]})
    assert steps.works(without) == {work: whole[work] for work in ("adp", "classify")}
    larger = steps.works(replace(without, shape=(3, 64, 64), classifier=nn.Flatten()))
    assert larger["adp"] == 4 * whole["adp"]
