import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from metastable.certify import certificate, certify, lower_bound, smoothing_noise, votes
from metastable.errors import SettingsError
from metastable.settings import Setting

NOISE = Setting.of("noise", "noise", steps=1, sigma=0.2, chains=4)


def test_clopper_pearson_by_hand() -> None:
    # All of n: the bound solves p^n = alpha.
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100))
    assert lower_bound(1, 1, 0.05) == pytest.approx(0.05)
    assert lower_bound(0, 10, 0.05) == 0.0


@given(n=st.integers(1, 200), share=st.floats(0, 1), alpha=st.sampled_from([0.001, 0.05]))
def test_at_the_bound_as_many_hits_have_the_chance_alpha(n: int, share: float, alpha: float) -> None:
    hits = round(share * n)
    bound = lower_bound(hits, n, alpha)
    assert 0 <= bound <= hits / n
    if hits:
        assert stats.binom.sf(hits - 1, n, bound) == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize(("hits", "n", "alpha"), [(2, 1, 0.1), (-1, 1, 0.1), (0, 0, 0.1), (1, 1, 0.0)])
def test_no_bound_for_impossible_votes(hits: int, n: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="no bound"):
        lower_bound(hits, n, alpha)


def test_the_radius_is_cohens() -> None:
    made = certificate(torch.tensor([1, 9]), torch.tensor([10, 990]), sigma=0.25, alpha=0.001)
    p = (
        stats.binomtest(990, 1000).proportion_ci(0.998, method="exact").low
    )  # two-sided 0.998 is one-sided 0.001
    assert made.label == 1
    assert made.lower == pytest.approx(p)
    assert made.radius == pytest.approx(0.25 * stats.norm.ppf(p))


def test_the_label_comes_from_the_first_votes_and_a_minority_is_no_certificate() -> None:
    made = certificate(torch.tensor([9, 1]), torch.tensor([400, 600]), sigma=0.25, alpha=0.001)
    assert (made.label, made.radius) == (None, 0.0)
    assert made.lower < 0.4


def half_plane(x: Tensor) -> Tensor:
    """Label 1 where the first pixel is above one half."""
    return torch.stack([torch.full((len(x),), 0.5), x[:, 0, 0, 0]], dim=1)


def test_the_radius_of_a_half_plane_is_the_distance_to_it_from_below() -> None:
    """Randomized smoothing is exact for a linear classifier; the bound comes from finite votes."""
    image = torch.full((1, 2, 2), 0.8)
    found = certify(
        image, NOISE, classifier=half_plane, score=torch.zeros_like, seed=1, choose=50, n=20_000, alpha=0.001
    )
    assert found.label == 1
    assert 0.95 * 0.3 < found.radius < 0.3


def test_votes_are_of_the_chains_asked_for() -> None:
    given = {"classifier": half_plane, "score": torch.zeros_like, "seed": 3}
    image = torch.full((1, 2, 2), 0.55)
    whole = votes(image, NOISE, first=0, n=150, **given)
    parts = votes(image, NOISE, first=0, n=40, **given) + votes(image, NOISE, first=40, n=110, **given)
    assert torch.equal(whole, parts)
    assert int(whole.sum()) == 150
    share = float(whole[1]) / 150
    assert abs(share - stats.norm.cdf(0.05 / 0.2)) < 4 * math.sqrt(0.25 / 150)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting.of("a", "none"), "dynamics adp or noise"),
        (Setting.of("a", "langevin", network="energy", steps=3), "dynamics adp or noise"),
        (Setting.of("a", "adp", steps=1), "sigma > 0"),
        (
            Setting.of("a", "adp", steps=1, sigma=0.2, sigma_unflagged=0.1),
            "leave sigma_unflagged",
        ),
    ],
)
def test_what_is_no_smoothed_classifier_is_refused(setting: Setting, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        smoothing_noise(setting)
