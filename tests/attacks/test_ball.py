import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metastable.attacks.ball import Ball


@given(seed=st.integers(0, 10**6), eps=st.floats(0.0, 0.4), far=st.floats(0.0, 2.0))
@settings(max_examples=60, deadline=None)
def test_eight_bit_images_stay_in_the_ball_of_an_eight_bit_image(seed: int, eps: float, far: float) -> None:
    rng, ball = torch.Generator().manual_seed(seed), Ball("linf", eps)
    images = torch.randint(0, 256, (2, 1, 4, 4), generator=rng) / 255
    x = ball.project(images + far * eps * torch.randn(images.shape, generator=rng), images)
    made = ball.eight_bit(x, images)
    assert torch.equal((255 * made).round() / 255, made)
    assert (made - images).abs().max() <= eps + 1e-6
    assert (made - x).abs().max() <= 1 / 255 + 1e-6
    assert 0 <= made.min() <= made.max() <= 1


def test_an_image_between_the_levels_keeps_its_pixels_where_no_level_is_near_enough() -> None:
    image = torch.full((1, 1, 2, 2), 100.5 / 255)
    tight = Ball("linf", 0.2 / 255)
    assert torch.equal(tight.eight_bit(image, image), image)
    assert Ball("linf", 1 / 255).eight_bit(image, image).mul(255).round().unique().tolist() == [100.0]


def test_at_radius_0_only_the_image_is_left() -> None:
    images = torch.randint(0, 256, (2, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 255
    for norm in ("linf", "l2"):
        ball = Ball(norm, 0.0)  # type: ignore[arg-type]
        x = ball.project(images + 0.1, images)
        assert torch.allclose(x, images, atol=1e-7)
        assert torch.allclose(ball.eight_bit(x, images), images, atol=1e-7)
    with pytest.raises(ValueError, match="a ball needs"):
        Ball("linf", -0.1)
