from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metastable import datasets
from metastable.datasets import Folder, folder
from metastable.errors import DataError
from metastable.images import Fit


def fill(place: Path, n: int = 10, size: tuple[int, int] = (30, 40)) -> Path:
    """Grey pictures 00.png, 01.png, ... of which number i is 10 i bright, every third in a sub-folder."""
    for i in range(n):
        path = place / ("deep/er" if i % 3 == 0 else "") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), 10 * i, np.uint8)).save(path)
    return place


def photos(place: Path, **given: Any) -> Folder:
    return Folder(**{"path": place, "shape": (3, 20, 30), **given})


def numbers(images: Tensor) -> list[int]:
    """Which pictures these are."""
    assert all(len(torch.unique(image)) == 1 for image in images)
    return [int(value) // 10 for value in images[:, 0, 0, 0]]


def test_whole_pictures_are_shared_out_by_the_seed(tmp_path: Path) -> None:
    fill(tmp_path)
    splits = {}
    for seed in (0, 1):
        train, test = (
            numbers(photos(tmp_path, seed=seed, crops=2).split(s).whole().images) for s in datasets.SPLITS
        )
        assert (len(train), len(test)) == (16, 4)
        assert sorted(train + test) == sorted([*range(10)] * 2)
        splits[seed] = sorted(set(test))
    assert splits[0] != splits[1]


def test_a_picture_that_comes_later_moves_few_others(tmp_path: Path) -> None:
    before = {file.name for file in photos(fill(tmp_path), test_share=0.5).split("test").files}
    Image.new("RGB", (9, 9)).save(tmp_path / "late.png")
    after = {file.name for file in photos(tmp_path, test_share=0.5).split("test").files}
    assert len(before ^ after) <= 2


def test_taken_ranges_are_disjoint_repeatable_and_leave_damage_out(tmp_path: Path) -> None:
    fill(tmp_path, 12)
    whole = photos(tmp_path, test_share=1).split("test")
    (tmp_path / "04.png").write_bytes(b"no picture")
    (tmp_path / "deep/er/06.png").write_bytes((tmp_path / "deep/er/06.png").read_bytes()[:60])
    parts = [whole.take(4), whole.take(3, skip=4), whole.take(9, skip=7)]
    found = [numbers(part.images) for part in parts]
    assert [len(part) for part in found] == [4, 3, 3]
    assert sorted(i for part in found for i in part) == [i for i in range(12) if i not in (4, 6)]
    assert parts[0].digest() == whole.take(4).digest()
    everything = whole.whole().about
    assert everything["skipped"] == 2
    assert set(everything["skipped_files"]) == {"04.png", "deep/er/06.png"}
    assert "truncated or damaged" in everything["skipped_files"]["deep/er/06.png"]
    assert (everything["images"], everything["pictures"]) == (10, 12)
    assert len(whole.take(3, skip=50)) == 0


def test_where_nothing_is_left_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"?")
    with pytest.raises(DataError, match=r"none of 2 pictures in .*\.png \(The image is empty"):
        photos(tmp_path, test_share=1).split("test").take(3)
    with pytest.raises(DataError, match="none of them is for test: change --test-share"):
        photos(tmp_path, test_share=0).split("test")
    with pytest.raises(DataError, match="no split 'dev'"):
        photos(tmp_path).split("dev")


def test_no_more_is_decoded_than_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 25)
    decoded, original = [], folder.decode

    def counting(data: bytes, **given: Any) -> Any:
        decoded.append(data)
        return original(data, **given)

    monkeypatch.setattr(folder, "decode", counting)
    many = photos(tmp_path)
    assert (len(many.split("train")), len(many.split("test"))) == (20, 5)
    many.split("train").take(3, skip=2)
    assert len(decoded) == 5


def test_many_pictures_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    wanted = photos(tmp_path).split("train").whole()
    monkeypatch.setattr(folder, "IN_MEMORY", 1000)
    mapped, original = [], np.memmap

    def mapping(*args: Any, **given: Any) -> Any:
        mapped.append(given["shape"])
        return original(*args, **given)

    monkeypatch.setattr(np, "memmap", mapping)
    found = photos(tmp_path).split("train").whole()
    assert mapped == [(8, 3, 20, 30)]
    assert torch.equal(found.images, wanted.images)
    assert found.digest() == wanted.digest()


def test_labels_choose_the_pictures(tmp_path: Path) -> None:
    place = fill(tmp_path / "photos", 6)
    csv = tmp_path / "labels.csv"
    csv.write_text("file,label\ndeep/er/00.png,dark\n05.png,bright\ndeep/er/03.png,dark\n")
    labelled = photos(place, labels=csv, test_share=1)
    found = labelled.split("test").whole()
    assert dict(zip(numbers(found.images), found.labels.tolist(), strict=True)) == {0: 1, 5: 0, 3: 1}
    assert (found.classes, found.labelled) == (["bright", "dark"], True)
    assert found.about["left_out"] == {"links": 0, "unlabelled": 3}
    assert found.about["labels"] == "labels.csv"
    named = photos(place, labels=csv, names=("dark", "grey", "bright")).split("train").whole()
    assert set(named.labels.tolist()) <= {0, 2}
    csv.write_text("file,label\n05.png,0\n9.png,1\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 3: there is no picture 9\.png in"):
        _ = photos(place, labels=csv).files
    csv.write_text("picture,kind\n05.png,dark\n")
    with pytest.raises(
        DataError, match=r"line 1: there is no picture picture in .*; if this is a header, name"
    ):
        _ = photos(place, labels=csv).files


def test_without_labels_a_classifier_gives_them(tmp_path: Path) -> None:
    fill(tmp_path)
    bare = folder.labeller_of(lambda x: torch.stack([x.mean((1, 2, 3)), 0.2 - x.mean((1, 2, 3))], 1))
    found = photos(tmp_path, labeller=bare, test_share=1).split("test").whole()
    wanted = [0 if 10 * number / 255 > 0.1 else 1 for number in numbers(found.images)]
    assert found.labels.tolist() == wanted
    assert set(wanted) == {0, 1}
    assert not found.labelled
    assert found.about["labels"] == folder.CLASSIFIER
    assert set(photos(tmp_path).split("train").whole().labels.tolist()) == {-1}
    with pytest.raises(DataError, match="a classifier needs labels: give --labels"):
        datasets.require_labels(found, "a classifier")


def test_windows_keep_proportions_and_depend_on_seed_and_picture(tmp_path: Path) -> None:
    """On a picture whose red is the row and green the column, a window shows where it is from."""
    rows, columns = np.mgrid[:120, :240]
    Image.fromarray(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)).save(tmp_path / "a.png")
    cut = photos(tmp_path, crops=40, test_share=1)
    images = cut.split("test").whole().images.float()
    assert images.shape == (40, 3, 20, 30)
    tall = images[:, 0].amax((1, 2)) - images[:, 0].amin((1, 2))
    wide = images[:, 1].amax((1, 2)) - images[:, 1].amin((1, 2))
    assert bool(((wide / tall - 1.5).abs() < 0.25).all())
    assert 17 <= float(tall.min()) < 45 < 75 < float(tall.max()) <= 119
    assert len(set(images[:, 0, 0, 0].tolist())) > 10
    assert torch.equal(cut.split("test").take(5).images, cut.split("test").take(5).images)
    other = dataclasses.replace(cut, seed=1).split("test").whole().images
    assert not torch.equal(other.float(), images)
    small = photos(tmp_path, crops=2, test_share=1, shape=(3, 240, 480)).split("test").whole()
    assert small.images.shape == (2, 3, 240, 480)  # where the picture is smaller, all of it


def test_what_images_are_made_of_has_a_name(tmp_path: Path) -> None:
    """A run that goes on compares it."""
    fill(tmp_path / "photos")
    given = {"path": tmp_path / "photos", "shape": (3, 20, 30)}
    names = [
        Folder(**(given | more)).inputs for more in ({}, {"seed": 1}, {"crops": 1}, {"shape": (1, 9, 9)})
    ]
    assert len(set(names)) == 4
    assert names[0] == Folder(**given).inputs
    Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "08.png")
    assert Folder(**given).inputs != names[0]


def test_numbers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong, said in (
        ({"test_share": 1.1}, "must lie in"),
        ({"crops": -1}, "must not be negative"),
        ({"seed": -1}, "must not be negative"),
    ):
        with pytest.raises(DataError, match=said):
            photos(tmp_path, **wrong)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="take fewer --crops"):
        photos(tmp_path, crops=10_000_001).split("train")


def test_whole_pictures_are_fitted_and_windows_keep_their_proportions(tmp_path: Path) -> None:
    levels = np.zeros((40, 120, 3), np.uint8)
    levels[:, 45:75] = 255
    Image.fromarray(levels).save(tmp_path / "wide.png")
    fit = Fit("crop", 0.5, "bilinear")
    [image] = photos(tmp_path, fit=fit, test_share=1).split("test").whole().images
    assert image.min() == 255  # the middle: 20 of the 40 rows, 30 of the 120 columns
    [stretched] = photos(tmp_path, test_share=1).split("test").whole().images
    assert (stretched == 0).any()
    made = photos(tmp_path, fit=fit, test_share=1, crops=6, shape=(3, 40, 60)).split("test").whole().images
    # A window of 40 x 60 shows at least 5 columns of the edges, which half of it would not.
    assert all((window == 0).any() for window in made)
    about = photos(tmp_path, fit=fit, test_share=1).about()
    assert about["fit"] == {"mode": "crop", "share": 0.5, "interpolation": "bilinear"}
    assert "fit" not in photos(tmp_path).about()
    digests = {
        photos(tmp_path, fit=one, test_share=1).split("test").digest() for one in (fit, Fit("crop"), Fit())
    }
    assert len(digests) == 3
