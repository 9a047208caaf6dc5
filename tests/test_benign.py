import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metastable import benign
from metastable.errors import DataError

GREY_IS_GREY = ("palette256", "more-saturation", "less-saturation")


def pictures(n: int, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random images, uint8."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=rng)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (255 * fine).round().to(torch.uint8)


@pytest.mark.parametrize("name", benign.CHANGES)
@given(channels=st.sampled_from([1, 3]), size=st.sampled_from([8, 28, 32]), seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_a_change_keeps_shape_and_type_repeats_and_leaves_its_input(
    name: str, channels: int, size: int, seed: int
) -> None:
    images = pictures(3, channels, size, seed % 100)
    before = images.clone()
    found = benign.changed(images, name, seed)
    assert torch.equal(images, before)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    assert torch.equal(found, benign.changed(images, name, seed))
    found[:] = 0  # a tensor of its own, not a view
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", benign.CHANGES)
def test_a_change_changes_something_and_not_much(name: str) -> None:
    for channels in (1, 3):
        images = pictures(4, channels)
        moved = (benign.changed(images, name).float() - images.float()).abs().mean()
        if name == "clean" or (channels == 1 and name in GREY_IS_GREY):
            assert moved == 0
        else:
            assert 0 < moved < 30


def test_changes_are_what_they_are_called() -> None:
    images = pictures(4)
    assert benign.changed(images, "brighter").float().mean() > images.float().mean() + 5
    assert benign.changed(images, "darker").float().mean() < images.float().mean() - 5
    assert benign.changed(images, "gamma0.8").float().mean() > images.float().mean() + 2
    assert benign.changed(images, "more-contrast").float().std() > images.float().std() + 2
    assert benign.changed(images, "less-contrast").float().std() < images.float().std() - 2
    rough = torch.from_numpy(np.random.default_rng(0).integers(60, 190, (2, 3, 32, 32), dtype=np.uint8))
    assert benign.changed(rough, "blur").float().std() < 0.7 * rough.float().std()
    colours = benign.changed(rough, "palette256").permute(0, 2, 3, 1).reshape(2, -1, 3)
    assert all(len(one.unique(dim=0)) <= 256 for one in colours)
    for name, width in (("noise2", 2), ("noise4", 4)):
        moved = benign.changed(rough, name).int() - rough.int()
        assert moved.abs().max() == width
        assert abs(float(moved.float().mean())) < 0.1
    worse = [(benign.changed(images, f"jpeg{q}").float() - images.float()).abs().mean() for q in (90, 75, 50)]
    assert worse == sorted(worse)


def test_noise_differs_by_image_and_by_seed() -> None:
    images = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
    found = benign.changed(images, "noise4", 0)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found, benign.changed(images, "noise4", 1))


def test_a_mixture_has_every_change_and_says_how_often() -> None:
    images = pictures(1).expand(600, -1, -1, -1)
    names = ("blur", "noise4", "darker")
    found, counts = benign.mixed(images, names, clean_share=0.4, seed=3)
    assert list(counts) == ["clean", "blur", "darker", "noise4"]  # the order of the table
    assert sum(counts.values()) == 600
    assert 190 < counts["clean"] < 290
    assert all(80 < counts[name] < 160 for name in names)
    assert sum(torch.equal(one, images[0]) for one in found) == counts["clean"]
    dark = benign.changed(images[:1], "darker")[0]
    assert sum(torch.equal(one, dark) for one in found) == counts["darker"]
    again, _ = benign.mixed(images, names, clean_share=0.4, seed=3)
    assert torch.equal(found, again)
    other, _ = benign.mixed(images, names, clean_share=0.4, seed=4)
    assert not torch.equal(found, other)


def test_the_default_is_no_noise_and_all_the_rest() -> None:
    assert set(benign.CHANGES) - set(benign.DEFAULT) == {"clean", "noise2", "noise4"}


def test_names_are_told_where_one_is_wrong() -> None:
    assert benign.named("blur,jpeg75,blur") == ("blur", "jpeg75")
    with pytest.raises(
        DataError, match=r"no benign changes \['swirl'\]: choose from clean, jpeg90, .*noise4"
    ):
        benign.named("blur,swirl")
    with pytest.raises(DataError, match="choose from"):
        benign.changed(pictures(1), "swirl")
    with pytest.raises(DataError, match="besides clean"):
        benign.mixed(pictures(1), ("clean",))
    with pytest.raises(DataError, match="clean share"):
        benign.mixed(pictures(1), ("blur",), clean_share=1.0)


@pytest.mark.parametrize("images", [torch.rand(1, 3, 8, 8), pictures(1)[0], pictures(1, 2, 8)])
def test_images_of_another_kind_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        benign.changed(images, "blur")
