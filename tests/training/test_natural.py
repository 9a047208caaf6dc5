from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metastable.errors import DataError
from metastable.networks.unshuffled import UnshuffledUNet
from metastable.training import natural, patches
from metastable.training.natural import NaturalConfig
from metastable.training.patches import Augmentation, Patches, Picture
from metastable.training.run import Paused, sitting

TINY = NaturalConfig(widths="4,4,4", blocks=1, updates=4, batch=2, patch=32, warmup=1, held_out=0.5)


def ramp(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture, every pixel of another colour."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    planes = [rng.uniform(50, 200) + 40 * np.sin(rows / 9 + k) + 10 * np.cos(columns / 7) for k in range(3)]
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        path = tmp_path / "pictures" / f"{'ab'[i % 2]}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp(40 + i, 64, i)).save(path)
    return tmp_path / "pictures"


def test_damaged_and_small_files_are_named_and_left_out(folder: Path) -> None:
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xffnothing")
    Image.fromarray(ramp(20, 64)).save(folder / "small.png")
    (folder / "notes.txt").write_text("no picture")
    with pytest.warns(UserWarning, match="left out") as said:
        found = patches.read(folder, 32)
    assert sorted(str(one.message).split()[0] for one in said) == ["bad.jpg", "small.png"]
    assert len(found) == 12
    assert [picture.name for picture in found] == sorted(picture.name for picture in found)
    with pytest.raises(DataError, match="is not a folder of pictures"):
        patches.read(folder / "nowhere", 32)


@pytest.mark.slow
def test_large_pictures_are_reduced_and_keep_their_aspect(tmp_path: Path) -> None:
    Image.fromarray(ramp(1000, 2000)).save(tmp_path / "large.png")
    [one] = patches.read(tmp_path, 32)
    assert one.pixels.shape == (768, 1536, 3)
    assert one.resized(2000) is one
    assert one.centre(224).pixels.shape == (224, 224, 3)


def test_the_split_depends_on_seed_and_name_alone(folder: Path) -> None:
    pictures = patches.read(folder, 32)
    train, held = patches.split(pictures, 0.4, 0)
    assert {one.name for one in train} & {one.name for one in held} == set()
    assert len(train) + len(held) == 12
    fewer = patches.split(pictures[3:], 0.4, 0)[1]
    assert {one.name for one in fewer} == {one.name for one in held} & {one.name for one in pictures[3:]}
    assert {one.name for one in patches.split(pictures, 0.4, 1)[1]} != {one.name for one in held}
    with pytest.raises(DataError, match="none to hold out"):
        patches.split(pictures[:1], 0.5, 0)


def test_batches_depend_on_seed_and_step_only(folder: Path) -> None:
    source = Patches(patches.read(folder, 32), Augmentation(32, 16, 0.5, 0.5, 0.5, 0.3))
    clean, noisy = source.batch(0, 5)
    again = source.batch(0, 5)
    assert torch.equal(clean, again[0])
    assert torch.equal(noisy, again[1])
    assert not torch.equal(clean, source.batch(0, 6)[0])
    assert not torch.equal(clean, source.batch(1, 5)[0])
    assert clean.shape == noisy.shape == (16, 3, 32, 32)
    assert clean.min() >= 0
    assert clean.max() <= 1


def test_shares_do_what_they_say(folder: Path) -> None:
    pictures = patches.read(folder, 32)

    def made(**shares: float) -> tuple[torch.Tensor, torch.Tensor]:
        given = {"gray": 0.0, "jpeg": 0.0, "clip": 0.0, "sigma_max": 0.3, **shares}
        return Patches(pictures, Augmentation(32, 16, **given)).batch(0, 1)

    clean, noisy = made()
    assert noisy.min() < 0
    assert noisy.max() > 1
    assert (noisy - clean).std() == pytest.approx(0.3 / 3**0.5, abs=0.05)
    assert made(clip=1)[1].min() >= 0
    gray, gray_noisy = made(gray=1)
    for one in (gray, gray_noisy):
        torch.testing.assert_close(one, one[:, :1].expand(-1, 3, -1, -1))
    compressed = made(jpeg=1)[0]
    assert 0 < (compressed - clean).abs().mean() < 0.05


def test_patches_come_from_every_size_of_the_pyramid() -> None:
    sizes = [level.shape[:2] for level in patches._pyramid(Picture("", ramp(200, 300)), 96)]
    assert sizes == [(200, 300), (150, 225), (112, 168)]


@pytest.mark.slow
def test_it_learns_and_says_how_well(folder: Path, tmp_path: Path) -> None:
    config = NaturalConfig(
        widths="8,8,8", blocks=1, updates=150, batch=4, patch=32, warmup=5, lr=1e-2, ema=0.9, held_out=0.3
    )
    result = natural.train(config, folder, tmp_path / "run", "cpu")
    assert set(result["psnr"]) == {"colour", "gray", "jpeg75", "jpeg50", "clipped"}
    assert result["psnr"]["colour"]["0.25"] > -20 * np.log10(0.25) + 4  # of the noise itself: 12 dB
    assert result["pictures"]["train"] + len(result["pictures"]["held_out"]) == 12
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"loss.png", "samples.png"}


@pytest.mark.slow
def test_a_run_in_sittings_ends_where_one_in_one_go_does(folder: Path, tmp_path: Path) -> None:
    whole = natural.train(TINY, folder, tmp_path / "whole", "cpu")
    with pytest.raises(Paused), sitting(0):
        natural.train(TINY, folder, tmp_path / "parts", "cpu")
    parts = natural.train(TINY, folder, tmp_path / "parts", "cpu")
    assert parts["psnr"] == whole["psnr"]


@pytest.mark.slow
def test_an_exact_denoiser_and_one_that_does_nothing_have_the_psnr_they_must() -> None:
    network = UnshuffledUNet((4, 4, 4), 1)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    held = [Picture(str(i), ramp(224, 240, i)) for i in range(2)]
    found = natural.judge(network, held)
    assert found["psnr"]["colour"]["0.05"] == pytest.approx(-20 * np.log10(0.05), abs=0.1)
    assert found["moved"]["colour"] == 0
