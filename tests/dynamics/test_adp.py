import math

import pytest
import torch

from metastable.dynamics.adp import adaptive_step_size, adp
from metastable.dynamics.gaussian import inject

MEAN, VARIANCE = 0.5, 0.04


def gaussian(x: torch.Tensor) -> torch.Tensor:
    """grad log p of N(MEAN, VARIANCE I)."""
    return (MEAN - x) / VARIANCE


def test_adaptive_step_on_a_gaussian_is_lambda_times_its_variance() -> None:
    """s(x') = (1 - delta / v) s(x), so eq. 18 gives alpha = lambda v whatever x is."""
    x = torch.rand(5, 3, 8, 8, dtype=torch.double)
    alpha = adaptive_step_size(x, gaussian(x), gaussian, fraction=0.3, bounds=(1e-9, 10))
    assert torch.allclose(alpha, torch.full((5,), 0.3 * VARIANCE, dtype=torch.double), rtol=1e-9)


def test_a_constant_factor_of_the_score_changes_nothing() -> None:
    x = torch.rand(3, 3, 8, 8, dtype=torch.double)
    run = {"steps": 4, "lambda_": 0.2, "bounds": (1e-9, 10.0), "stop": 0.0}
    one = adp(x, gaussian, **run)
    other = adp(x, lambda y: VARIANCE * gaussian(y), **run)
    assert torch.allclose(one.x, other.x, atol=1e-12)


def test_gaussian_score_leads_to_the_mean_in_the_predicted_number_of_steps() -> None:
    """Each step leaves 1 - lambda of the distance; a chain stops at the first |s| < stop."""
    lambda_, stop = 0.25, 0.5
    offsets = torch.tensor([0.3, 0.003], dtype=torch.double)
    x = (MEAN + offsets).view(2, 1, 1, 1).expand(2, 1, 4, 4).clone()
    norms = offsets * 4 / VARIANCE  # 16 pixels
    expected = [max(0, math.ceil(math.log(float(n) / stop) / -math.log(1 - lambda_))) for n in norms]
    result = adp(x, gaussian, steps=50, lambda_=lambda_, bounds=(1e-9, 10.0), stop=stop)
    assert result.steps.tolist() == expected
    left = offsets * (1 - lambda_) ** torch.tensor(expected, dtype=torch.double)
    assert torch.allclose(result.x[:, 0, 0, 0] - MEAN, left, atol=1e-12)


def test_a_stopped_chain_does_not_move_and_does_not_disturb_others() -> None:
    x = torch.stack([torch.full((1, 4, 4), MEAN), torch.rand(1, 4, 4)]).double()
    both = adp(x, gaussian, steps=3, lambda_=0.2, bounds=(1e-9, 10.0), stop=1e-3)
    assert torch.equal(both.x[0], x[0])
    assert both.steps.tolist() == [0, 3]
    alone = adp(x[1:], gaussian, steps=3, lambda_=0.2, bounds=(1e-9, 10.0), stop=1e-3)
    assert torch.equal(both.x[1:], alone.x)


def test_step_size_is_bounded_where_the_score_grows_along_itself() -> None:
    x = torch.rand(2, 1, 4, 4)
    alpha = adaptive_step_size(x, x, lambda y: 2 * y, fraction=0.1, delta=0.1, bounds=(1e-5, 0.1))
    assert torch.equal(alpha, torch.full((2,), 0.1))


def test_states_stay_in_the_unit_range() -> None:
    x = torch.rand(4, 3, 8, 8)
    noisy = inject(x, torch.full((4,), 0.5), torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    assert noisy.min() == 0
    assert noisy.max() == 1
    end = adp(noisy, lambda y: 100 * (y - 0.5), steps=3, bounds=(1e-5, 1.0)).x
    assert 0 <= end.min() <= end.max() <= 1


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_injection_uses_each_chains_own_sigma(sigma: float) -> None:
    x = torch.full((2, 1, 16, 16), 0.5)
    out = inject(x, torch.tensor([0.05, sigma]), torch.ones_like(x))
    assert torch.allclose(out[:, 0, 0, 0], torch.tensor([0.55, 0.5 + sigma]))


def test_equal_bounds_fix_the_step_and_save_an_evaluation() -> None:
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return VARIANCE * gaussian(x)

    x = torch.rand(2, 1, 4, 4)
    end = adp(x, counted, steps=1, bounds=(1.0, 1.0), stop=0.0).x
    assert torch.allclose(end, torch.full_like(x, MEAN), atol=1e-6)
    assert len(calls) == 1
