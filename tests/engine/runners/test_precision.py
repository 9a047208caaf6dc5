"""Below float32: states stay float32, and ADP looks further ahead."""

from __future__ import annotations

import pytest
import torch

from metastable.bundle import Bundle
from metastable.dynamics.adp import DELTA, Ascent
from metastable.dynamics.base import Adaptation, columns
from metastable.dynamics.drift import Drift
from metastable.engine.precision import AHEAD, ahead_of
from metastable.engine.runners import Batch, Runner
from metastable.engine.runners.torch_runner import TorchRunner
from tests.engine.runners.given import row_of

pytestmark = pytest.mark.slow

X = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
KEYS = [(9, chain) for chain in range(len(X))]
ADP = [(0.5, 1e-3, 5.0, 0.0)] * len(X)


@pytest.fixture(scope="module", params=["torch", "openvino"])
def bf16(request: pytest.FixtureRequest, tiny: Bundle) -> Runner:
    if request.param == "torch":
        return TorchRunner(tiny.networks, tiny.classifier, precision="bf16")
    pytest.importorskip("openvino")
    from metastable.engine.runners.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(request.getfixturevalue("tiny_graphs"), precision="bf16", threads=1)


def test_bfloat16_is_near_float32(bf16: Runner, tiny: Bundle) -> None:
    exact = TorchRunner(tiny.networks, tiny.classifier)
    for kind, rows in ((Drift("energy"), [row_of(0.1)] * len(X)), (Ascent("score"), ADP)):
        got, moved = bf16.advance(kind, Batch(X, KEYS, [0] * len(X), rows), 2)
        wanted, expected = exact.advance(kind, Batch(X, KEYS, [0] * len(X), rows), 2)
        assert got.dtype == torch.float32
        assert torch.equal(moved, expected)
        assert (got - wanted).abs().median() < 0.02
    assert bf16.classify(X).dtype == torch.float32
    assert bf16.name.endswith("-bf16")


def test_the_step_size_survives_scores_rounded_to_bfloat16() -> None:
    """The score c - x of a Gaussian: the exact step is lambda, whatever the look ahead."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return 0.5 - x.bfloat16().float()

    def error(ahead: float | None) -> float:
        x = 0.5 + 0.05 * (X - 0.5)
        given = columns([(0.5, 1e-6, 10.0, 0.0)] * len(X))
        after, _ = Ascent("score").step(x, rounded, given, adapt=Adaptation(ahead))
        alpha = ((after - x) / rounded(x)).flatten(1).nanmedian(1).values
        return float((alpha - 0.5).abs().max())

    assert error(ahead_of("bf16")) < 0.1
    assert error(None) > 0.2
    assert ahead_of("f32") is None


def test_the_look_ahead_is_never_shorter_than_the_published_one() -> None:
    """Where the score is long, DELTA of it is further than AHEAD."""
    looked: list[float] = []

    def score(x: torch.Tensor) -> torch.Tensor:
        looked.append(float((x - X).flatten(1).norm(dim=1).max()))
        return torch.full_like(x, 1e4)

    Ascent("score").step(X, score, columns(ADP), adapt=Adaptation(AHEAD))
    assert looked[1] == pytest.approx(DELTA * 1e4 * (3 * 32 * 32) ** 0.5, rel=1e-3)
