from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest import sets
from loadtest.make import Order, make
from metastable.attacks.catalogue import Options
from metastable.bundle import Bundle
from metastable.datasets import CIFAR10_CLASSES, ImageSet
from metastable.errors import DataError, SettingsError

EPS = 8 / 255


def images(n: int = 5) -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=rng, dtype=torch.uint8)
    return ImageSet("noise", "test", pixels, torch.arange(n) % 10, list(CIFAR10_CLASSES))


def order(attack: str, **changes: object) -> Order:
    options = Options(eps=EPS, steps=2, samples=2, check=2)
    return Order(attack=attack, setting="fast", options=options, skip=40, batch=2, **changes)  # type: ignore[arg-type]


def test_clean_images_are_a_set(tiny: Bundle, tmp_path: Path) -> None:
    made = make(tiny, images(), order("clean"), tmp_path / "clean.npz")
    assert (made.images == made.originals).all()
    assert made.about.eps == 0
    assert sets.load(tmp_path / "clean.npz").digest == made.digest


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["transfer", "bpda-eot"])
def test_attacked_images_are_in_their_balls(tiny: Bundle, tmp_path: Path, attack: str) -> None:
    made = make(tiny, images(), order(attack), tmp_path / "a.npz")
    assert 0.5 * EPS < made.distances().max() <= EPS + sets.SLACK
    assert made.index.tolist() == [40, 41, 42, 43, 44]
    assert made.about.bundle == tiny.digest
    assert made.about.setting == ("" if attack == "transfer" else "fast")
    assert "steps=2" in made.about.parameters
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.slow
def test_an_interrupted_set_goes_on_and_comes_out_the_same(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(tiny, images(), order("transfer"), tmp_path / "whole.npz")
    calls = []

    class Interrupted(Exception):
        pass

    original = make.__globals__["save_file"]

    def once(*args: object) -> None:
        if calls:
            raise Interrupted
        calls.append(1)
        original(*args)

    monkeypatch.setitem(make.__globals__, "save_file", once)
    with pytest.raises(Interrupted):
        make(tiny, images(), order("transfer"), tmp_path / "a.npz")
    monkeypatch.undo()
    with pytest.raises(DataError, match="another configuration"):
        make(tiny, images(), order("transfer", seed=1), tmp_path / "a.npz")
    first = tmp_path / "a.parts" / "000000.safetensors"
    kept = first.stat().st_mtime_ns
    monkeypatch.setattr("loadtest.make.shutil.rmtree", lambda path: None)
    again = make(tiny, images(), order("transfer"), tmp_path / "a.npz")
    assert first.stat().st_mtime_ns == kept
    assert again.digest == whole.digest


def test_what_cannot_be_made_is_explained(tiny: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        make(tiny, images(0), order("clean"), tmp_path / "a.npz")
    wrong = Order(attack="transfer", setting="magic")
    with pytest.raises(SettingsError, match="magic"):
        make(tiny, images(), wrong, tmp_path / "a.npz")


@pytest.mark.slow
def test_pairs_of_sets_share_their_originals(tiny: Bundle, tmp_path: Path) -> None:
    clean = make(tiny, images(), order("clean"), tmp_path / "c.npz")
    attacked = make(tiny, images(), order("transfer"), tmp_path / "a.npz")
    assert np.array_equal(clean.images, attacked.originals)
    assert np.array_equal(clean.index, attacked.index)
