"""The smooth JPEG beside Pillow's, and gradients through squeezed images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metastable.attacks.squeezed import soft_jpeg, soft_round, surrogate
from metastable.attacks.target import Eot, WhiteBox
from metastable.dynamics.squeeze import Squeeze, jpeg
from metastable.settings import Setting


def pictures(channels: int, height: int = 40, width: int = 28) -> torch.Tensor:
    """Smooth ones, as photographs are: [2, channels, height, width]."""
    coarse = torch.rand(2, channels, 6, 5, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_with_hard_rounding_it_is_what_pillow_makes(channels: int, quality: int) -> None:
    x = (pictures(channels) * 255).round() / 255
    made, real = soft_jpeg(x, quality, torch.round), jpeg(x, quality)
    apart, changed = (255 * (made - real)).abs().mean(), (255 * (x - real)).abs().mean()
    assert apart < 2  # theirs rounds colours to whole levels on the way, which turns some cosines
    assert apart < max(0.4 * changed, 0.5)


def test_the_soft_rounding_is_near_the_hard_one_and_has_a_derivative() -> None:
    x = torch.linspace(-2.4, 2.4, 97, requires_grad=True)
    found = soft_round(x)
    assert (found - x.round()).abs().max() <= 0.125 + 1e-6
    found.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 3 * (x - x.round()).detach() ** 2)


def white_box(dynamics: Squeeze) -> WhiteBox:
    torch.manual_seed(0)
    classifier = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3)
    )
    setting = Setting.of("x", "squeeze", way=dynamics.way, level=dynamics.level)
    return WhiteBox(setting, classifier.eval(), lambda x: x)


@pytest.mark.parametrize("dynamics", [Squeeze(way="jpeg", level=50), Squeeze(way="median", level=2)])
def test_the_value_is_the_real_one_and_the_gradient_knows_of_the_squeezing(dynamics: Squeeze) -> None:
    box = white_box(dynamics)
    assert box.strongest == "smooth"
    x, gradients = pictures(3), {}
    for gradient in ("smooth", "bpda"):
        start = x.clone().requires_grad_()
        logits = Eot(box, samples=1, gradient=gradient)(start)  # type: ignore[arg-type]
        with torch.no_grad():
            torch.testing.assert_close(logits, Eot(box, samples=1, gradient="bpda")(x))
        logits[:, 0].sum().backward()
        gradients[gradient] = start.grad
    assert gradients["smooth"].isfinite().all()  # type: ignore[union-attr]
    assert not torch.allclose(gradients["smooth"], gradients["bpda"], rtol=0.1)  # type: ignore[arg-type]
    assert gradients["smooth"].abs().sum() > 0  # type: ignore[union-attr]


def test_fewer_bits_have_the_identity() -> None:
    assert surrogate(Squeeze(way="bits", level=5)) is None
    assert white_box(Squeeze(way="bits", level=5)).strongest == "bpda"
