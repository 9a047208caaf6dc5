import numpy as np
import pytest
import torch

from metastable import anomaly
from metastable.bundle import Bundle


def test_threshold_keeps_the_promised_rate_on_new_images() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        norms = torch.from_numpy(rng.gamma(3.0, size=400))
        found = anomaly.calibrate(norms, false_positive_rate=0.05, network="score", data={})
        rates.append(float(found.flags(torch.from_numpy(rng.gamma(3.0, size=2000))).float().mean()))
    assert 0.04 < np.mean(rates) <= 0.0515  # the promise holds on average, and is not wasted


def test_threshold_by_hand_and_flags() -> None:
    norms = torch.arange(1, 100).float()
    found = anomaly.calibrate(norms, false_positive_rate=0.1, network="score", data={"name": "x"})
    assert found.threshold == 90.0  # ceil(100 * 0.9)
    assert found.n == 99
    assert found.flags(torch.tensor([90.0, 90.5, float("nan"), float("inf")])).tolist() == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(("n", "rate"), [(5, 0.05), (50, 0.0), (50, 1.0)])
def test_impossible_calibrations_are_refused(n: int, rate: float) -> None:
    with pytest.raises(ValueError, match="false-positive rate"):
        anomaly.calibrate(torch.rand(n), false_positive_rate=rate, network="score", data={})


def test_norms_do_not_depend_on_batching(tiny: Bundle) -> None:
    x = torch.rand(7, 3, 32, 32)
    one = anomaly.score_norms(x, tiny.scores["score"], batch=2)
    other = anomaly.score_norms(x, tiny.scores["score"], batch=7)
    assert torch.allclose(one, other, rtol=1e-4)


def test_changes_are_kept_and_must_be_of_the_images() -> None:
    norms = torch.arange(1, 100).float()
    changes = {"clean": 50, "blur": 49}
    found = anomaly.calibrate(norms, false_positive_rate=0.1, network="score", data={}, changes=changes)
    assert found.changes == changes
    assert anomaly.calibrate(norms, false_positive_rate=0.1, network="score", data={}).changes == {}
    with pytest.raises(ValueError, match="of 50 images, not of 99"):
        anomaly.calibrate(norms, false_positive_rate=0.1, network="score", data={}, changes={"clean": 50})


def test_the_prediction_shift_is_the_total_variation_distance() -> None:
    bare = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    purified = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.3, 0.2]])
    assert torch.allclose(anomaly.prediction_shift(bare, purified), torch.tensor([1.0, 0.0, 0.3]))


def test_a_threshold_of_any_statistic_keeps_its_evidence() -> None:
    found = anomaly.threshold_of(
        torch.linspace(0, 1, 99), false_positive_rate=0.1, data={"name": "x"}, changes={"clean": 99}
    )
    assert found.threshold == pytest.approx(89 / 98)
    assert (found.n, found.data, found.changes) == (99, {"name": "x"}, {"clean": 99})


def test_ranks_are_spread_evenly_whatever_the_statistic() -> None:
    rng = np.random.default_rng(0)
    found = anomaly.threshold_of(
        torch.from_numpy(rng.lognormal(size=5000)), false_positive_rate=0.05, data={}
    )
    ranks = np.array([found.rank(value) for value in rng.lognormal(size=5000)])
    for mark in anomaly.MARKS:
        assert abs((ranks <= mark).mean() - mark) < 0.025
    assert abs(ranks.mean() - 0.5) < 0.02


def test_a_rank_by_hand() -> None:
    marks = {"0.25": 1.0, "0.5": 3.0, "0.75": 3.0}
    found = anomaly.Threshold(threshold=9.0, false_positive_rate=0.1, n=9, data={}, quantiles=marks)
    expected = {-1.0: 0.0, 0.0: 0.0, 0.5: 0.125, 1.0: 0.25, 2.0: 0.375, 3.0: 0.5, 3.1: 1.0, 1e9: 1.0}
    assert {value: found.rank(value) for value in expected} == expected


@pytest.mark.parametrize("marks", [{}, {"median": 1.0, "nan": 1.0, "0": 0.0, "1.5": 2.0}])
def test_there_is_no_rank_without_quantiles(marks: dict[str, float]) -> None:
    found = anomaly.Threshold(threshold=9.0, false_positive_rate=0.1, n=9, data={}, quantiles=marks)
    assert found.curve == ()
    assert found.rank(1.0) is None
