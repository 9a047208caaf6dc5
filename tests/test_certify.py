import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from metastable.certify import certificate, certify, lower_bound, merged, smoothing_noise, spans, votes
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


@pytest.mark.parametrize(("shape", "size"), [((3, 32, 32), 256), ((3, 224, 224), 20), ((1, 2000, 2000), 4)])
def test_spans_are_all_chains_once_in_whole_batches(shape: tuple[int, ...], size: int) -> None:
    found = spans(100, 1000, shape)
    of = {chooses: [one for one in found if one.chooses == chooses] for chooses in (True, False)}
    for chooses, chains in ((True, range(100)), (False, range(100, 1100))):
        assert [c for one in of[chooses] for c in range(one.first, one.first + one.n)] == list(chains)
        assert {one.n for one in of[chooses][:-1]} <= {size}


def test_votes_of_spans_in_any_order_make_the_certificate() -> None:
    image, given = torch.full((1, 32, 32), 0.6), {"classifier": half_plane, "score": torch.zeros_like}
    whole = certify(image, NOISE, seed=3, choose=60, n=700, **given)
    counted = {
        span: votes(image, NOISE, seed=3, first=span.first, n=span.n, **given)
        for span in reversed(spans(60, 700, (1, 32, 32)))
    }
    assert len(counted) == 4
    assert merged(counted, sigma=0.2, alpha=0.001) == whole
    direct = (votes(image, NOISE, seed=3, first=first, n=n, **given) for first, n in ((0, 60), (60, 700)))
    assert certificate(*direct, sigma=0.2, alpha=0.001) == whole


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
