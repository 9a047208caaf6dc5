import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest import sets
from loadtest.sets import About, AttackSet
from metastable.errors import DataError

EPS = 8 / 255


def small(attack: str = "transfer", **changes: Any) -> AttackSet:
    rng = np.random.default_rng(0)
    originals = rng.random((3, 3, 4, 4), np.float32)
    moved = originals + rng.choice([-EPS, EPS], originals.shape).astype(np.float32)
    values: dict[str, Any] = {
        "images": originals.copy() if attack == "clean" else moved.clip(0, 1),
        "originals": originals,
        "labels": np.array([0, 5, 9]),
        "index": np.arange(3),
        "success": np.zeros(3, bool),
        "about": About(attack=attack, eps=0.0 if attack == "clean" else EPS, classes=tuple("abcdefghij")),
    }
    return AttackSet(**{**values, **changes})


@pytest.mark.parametrize("attack", ["clean", "transfer"])
def test_a_set_comes_back_as_it_was(tmp_path: Path, attack: str) -> None:
    made = small(attack)
    sets.save(tmp_path / "a.npz", made)
    back = sets.load(tmp_path / "a.npz")
    for name in sets.ARRAYS:
        assert (getattr(back, name) == getattr(made, name)).all()
    assert back.about == made.about
    assert back.digest == made.digest
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    sets.save(tmp_path / "a.npz", small())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert json.loads(str(file["about"]))["attack"] == "transfer"
        assert np.abs(file["images"] - file["originals"]).max() == pytest.approx(EPS, rel=1e-5)


def test_an_image_outside_its_ball_is_an_error() -> None:
    images = small().images.copy()
    images[1] = 1 - images[1]
    with pytest.raises(DataError, match=r"image 1 is 0\.\d+ from its original in the linf norm"):
        small(images=images)


def test_the_l2_ball_is_measured_in_l2() -> None:
    one = small()
    distance = float(np.linalg.norm((one.images - one.originals).reshape(3, -1).astype(float), axis=1).max())
    about = dataclasses.replace(one.about, norm="l2", eps=distance)
    assert small(about=about).distances().max() == pytest.approx(distance)
    with pytest.raises(DataError, match="l2"):
        small(about=dataclasses.replace(about, eps=0.99 * distance))


def test_a_clean_image_is_its_original() -> None:
    with pytest.raises(DataError, match="outside the ball"):
        small("clean", images=small().images)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": np.array([0, 5, 10])}, "labels must be in"),
        ({"labels": np.array([0, -1, 3])}, "labels must be in"),
        ({"labels": np.array([0.0, 1.0, 2.0])}, "labels must be int64"),
        ({"index": np.arange(2)}, "index must be int64 with 3 rows"),
        ({"success": np.zeros((3, 1), bool)}, "success must be bool"),
        ({"originals": np.zeros((3, 3, 4, 5), np.float32)}, "images must be"),
        ({"images": np.full((3, 3, 4, 4), np.nan, np.float32)}, "image 0 has values outside"),
        ({"images": np.full((3, 3, 4, 4), 2, np.float32)}, "image 0 has values outside"),
        ({"about": About(attack="x", norm="l7", classes=tuple("abcdefghij"))}, "linf or l2"),
        ({"about": About(attack="x", eps=float("nan"))}, "finite eps"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        small(**changes)


def test_no_image_is_no_set() -> None:
    none = np.zeros((0, 3, 4, 4), np.float32)
    empty = {"labels": np.zeros(0, np.int64), "index": np.zeros(0, np.int64), "success": np.zeros(0, bool)}
    with pytest.raises(DataError, match="N >= 1"):
        small(images=none, originals=none, **empty)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="loadtest make"):
        sets.load(tmp_path / "none.npz")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.save(tmp_path / "a.npz", small())
    monkeypatch.setattr(sets, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="unpacks to"):
        sets.load(tmp_path / "a.npz")


def test_pickles_are_refused(tmp_path: Path) -> None:
    arrays = {name: np.array([{}], object) for name in (*sets.ARRAYS, "about")}
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not an attack set"):
        sets.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "about",
    ["{}", "[]", "nonsense", '{"format": "metastable-attack-set 1"}', '{"format": "metastable-attack-set 2"}',
     '{"format": "metastable-attack-set 1", "attack": "x", "eps": "big"}',
     '{"format": "metastable-attack-set 1", "attack": "x", "colour": "red"}'],
)  # fmt: skip
def test_wrong_words_about_a_set_are_refused(tmp_path: Path, about: str) -> None:
    arrays = {name: getattr(small(), name) for name in sets.ARRAYS}
    np.savez(tmp_path / "a.npz", about=np.array(about), **arrays)
    with pytest.raises(DataError, match="not an attack set"):
        sets.load(tmp_path / "a.npz")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(at=st.integers(0, 10_000), byte=st.integers(1, 255), cut=st.integers(0, 10_000) | st.none())
def test_a_damaged_file_loads_as_it_was_or_not_at_all(
    tmp_path: Path, at: int, byte: int, cut: int | None
) -> None:
    """Zip's checksums hold the arrays; what lies outside of them must not matter or must not load."""
    path = tmp_path / "a.npz"
    sets.save(path, small())
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= byte
    path.write_bytes(bytes(data[: len(data) if cut is None else cut % len(data)]))
    try:
        loaded = sets.load(path)
    except DataError:
        return
    assert loaded.digest == small().digest


def test_an_archive_of_other_arrays_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        archive.writestr("x.npy", buffer.getvalue())
    with pytest.raises(DataError, match="holds"):
        sets.load(tmp_path / "a.npz")
