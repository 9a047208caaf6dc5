"""Baselines against Pillow, SciPy and arithmetic by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from metastable.attacks.target import Eot, WhiteBox
from metastable.defense import purify
from metastable.dynamics.squeeze import WAYS, Squeezed, fewer_bits, jpeg, median
from metastable.errors import NoGradient, SettingsError
from metastable.settings import Setting
from tests.attacks.planted import Prototypes

X = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_jpeg_is_what_a_file_would_hold() -> None:
    pixels = (X[1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=50)
    wanted = torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1) / 255
    assert torch.equal(jpeg(X, 50)[1], wanted)
    assert (jpeg(X, 50) - X).abs().mean() > (jpeg(X, 95) - X).abs().mean()
    assert jpeg(X[:, :1], 75).shape == (3, 1, 16, 16)
    assert jpeg(X.double(), 75).dtype == torch.float64


def test_states_beyond_the_range_are_clipped_before_they_are_written() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert float(jpeg(grey + 0.7, 95).min()) > 0.98
    assert float(jpeg(grey - 0.7, 95).max()) < 0.02


def test_fewer_bits_leave_so_many_values() -> None:
    assert torch.equal(
        fewer_bits(torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0]), 1), torch.tensor([0, 0, 0, 1, 1.0])
    )
    assert len(fewer_bits(X, 3).unique()) == 8
    assert torch.allclose(fewer_bits(X, 8), (X * 255).round() / 255)


def test_the_median_is_scipys() -> None:
    for size in (3, 5):
        wanted = ndimage.median_filter(X.numpy(), size=(1, 1, size, size), mode="mirror")
        assert torch.allclose(median(X, size), torch.from_numpy(wanted))
    grid = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    assert median(grid, 2)[0, 0, 0, 0] == pytest.approx(0.375)  # of all four


def test_each_row_has_its_own_level_and_one_chain_says_all() -> None:
    x, moved = Squeezed(way="bits").step(X, torch.zeros_like, [torch.tensor([1.0, 3.0, 1.0])])
    assert [len(row.unique()) for row in x] == [2, 8, 2]
    assert moved.tolist() == [1.0] * 3
    setting = Setting.of("a", "squeeze", way="jpeg", level=50)
    assert setting.most_chains == 1
    state, steps = purify(X, [(i, 0) for i in range(3)], setting, torch.zeros_like, torch.ones(3))
    assert torch.equal(state, jpeg(X, 50))
    assert steps.tolist() == [1] * 3


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_a_window_may_be_larger_than_the_image(side: int) -> None:
    x = torch.rand(2, 3, side, side)
    pixels = np.pad(x.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (7, 7), axis=(2, 3))
    np.testing.assert_allclose(median(x, 7), np.median(windows, axis=(4, 5)), rtol=1e-6)


def test_bpda_takes_the_identity_for_its_gradient() -> None:
    model = Prototypes()
    images, _ = model.images(2)
    box = WhiteBox(Setting.of("a", "squeeze", way="median", level=3), model, torch.zeros_like)
    x = images.clone().requires_grad_(True)
    through = torch.autograd.grad(Eot(box, samples=1, gradient="bpda")(x).sum(), x)[0]
    at = median(images, 3).requires_grad_(True)
    assert torch.allclose(through, torch.autograd.grad(model(at).sum(), at)[0])
    with pytest.raises(NoGradient, match="median has no gradient"):
        Eot(box, samples=1, gradient="exact")(x)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_levels_out_of_range_are_refused(way: str) -> None:
    _, least, most = WAYS[way]
    for level in (least - 1, most + 1, 2.5, "3"):
        with pytest.raises(SettingsError, match=f"level must be a whole number from {least} to {most}"):
            Setting.of("a", "squeeze", way=way, level=level)
    with pytest.raises(SettingsError, match="way must be one of"):
        Setting.of("a", "squeeze", way="blur", level=3)
    with pytest.raises(SettingsError, match="way must be one of"):
        Setting.of("a", "squeeze", way=["jpeg"], level=3)  # a list has no hash
    with pytest.raises(SettingsError, match="needs the fields"):
        Setting.of("a", "squeeze", way=way)
