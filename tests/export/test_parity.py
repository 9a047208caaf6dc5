from __future__ import annotations

import math

import pytest
import torch

from export import parity
from metastable.bundle import Bundle
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import BundleError

EXACT = parity.TOLERANCES["float32"]
REAL = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def figures(median: float = 0.0, same: int = 200) -> dict[str, object]:
    graph = {"random": {"n": 16, "median": median, "tail": median}}
    return {"graphs": {"score": graph}, "labels": {"fast": {"n": 200, "same": same}}}


def test_errors_are_of_rows_and_relative() -> None:
    wanted = torch.full((10, 2), 3.0)
    got = wanted.clone()
    got[9] += 0.3
    assert parity.errors(got, wanted) == {"n": 10, "median": 0.0, "tail": 0.1}


def test_no_number_is_no_agreement() -> None:
    wanted = torch.ones(3, 2)
    found = parity.errors(wanted * math.nan, wanted)
    assert found["median"] == math.inf
    with pytest.raises(BundleError, match="x is refused"):
        parity.judge("x", {"graphs": {"score": {"noisy": found}}}, "int8")
    assert list(parity.refusals(figures(math.nan), EXACT))


@pytest.mark.parametrize(
    ("median", "same", "refused"), [(0, 200, 0), (1e-4, 200, 1), (0, 198, 0), (0, 197, 1)]
)
def test_errors_and_labels_are_both_judged(median: float, same: int, refused: int) -> None:
    assert len(list(parity.refusals(figures(median, same), EXACT))) == refused


@pytest.mark.slow
def test_a_runner_in_float32_is_its_bundle_and_one_in_bfloat16_is_not_as_near(tiny: Bundle) -> None:
    reference = parity.Reference(tiny, REAL)
    exact = parity.measure(TorchRunner(tiny.networks, tiny.classifier), reference)
    parity.judge("torch", exact, "float32")
    rough = parity.measure(TorchRunner(tiny.networks, tiny.classifier, precision="bf16"), reference)
    with pytest.raises(BundleError, match="artifact torch is refused, it is not its bundle: score on random"):
        parity.judge("torch", rough, "float32")


def test_one_setting_a_network_and_walk_is_judged_at_few_chains(tiny: Bundle) -> None:
    chosen = parity.judged(tiny.settings)
    assert set(chosen.names) == {"fast", "langevin"}
    assert all(one.chains == parity.CHAINS and one.delta is None for one in chosen.by_name.values())
