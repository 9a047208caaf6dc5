import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metastable import corruptions, datasets
from metastable.errors import DataError, MissingPackage


@pytest.fixture
def test_set() -> datasets.ImageSet:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return datasets.ImageSet("noise", "test", images, torch.tensor([3, 1, 4, 1]), [])


def marked(image: np.ndarray, kind: str, severity: int) -> np.ndarray:
    """The image with its kind and severity written into two pixels."""
    made = image.copy()
    made[0, 0, 0], made[0, 0, 1] = corruptions.NAMES.index(kind), severity
    return made


def test_there_are_fifteen_kinds_in_four_groups() -> None:
    assert len(corruptions.NAMES) == len(set(corruptions.NAMES)) == 15
    assert [len(group) for group in corruptions.KINDS.values()] == [3, 4, 4, 4]


def test_what_is_written_is_read_back_by_kind_and_severity(
    test_set: datasets.ImageSet, tmp_path: Path
) -> None:
    corruptions.generate(test_set, tmp_path, corrupt=marked)
    for number, kind in enumerate(corruptions.NAMES):
        for severity in corruptions.SEVERITIES:
            found = corruptions.load(tmp_path, kind, severity)
            assert torch.equal(found.labels, test_set.labels)
            assert (found.images[:, 0, 0, 0] == number).all()
            assert (found.images[:, 1, 0, 0] == severity).all()
            assert torch.equal(found.images[:, :, 1:], test_set.images[:, :, 1:])
    assert corruptions.source(tmp_path)["severities"] == "of ImageNet-C"


def test_files_that_are_there_are_kept(test_set: datasets.ImageSet, tmp_path: Path) -> None:
    corruptions.generate(test_set, tmp_path, corrupt=marked)
    (tmp_path / "fog.npy").unlink()

    def zeros(image: np.ndarray, kind: str, severity: int) -> np.ndarray:
        return np.zeros_like(image)

    corruptions.generate(test_set, tmp_path, corrupt=zeros)
    assert corruptions.load(tmp_path, "fog", 1).images.max() == 0
    assert corruptions.load(tmp_path, "snow", 1).images.max() > 0


def test_official_files_have_no_source(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(10, np.uint8))
    numbered = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 32, 32, 3))
    np.save(tmp_path / "fog.npy", numbered)
    assert corruptions.source(tmp_path) == {"made_by": "not stated"}
    assert corruptions.load(tmp_path, "fog", 2).images[:, 0, 0, 0].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("labels", np.zeros(7, np.uint8), "must be uint8 .5 N"),
        ("labels", np.zeros(0, np.uint8), "must be uint8 .5 N"),
        ("labels", np.full(10, 10, np.uint8), "labels 0 to 9"),
        ("labels", np.zeros(10, np.int64), "must be uint8, not int64"),
        ("fog", np.zeros((9, 32, 32, 3), np.uint8), "must be uint8 .10, 32, 32, 3"),
        ("fog", np.zeros((10, 3, 32, 32), np.uint8), "must be uint8 .10, 32, 32, 3"),
        ("fog", np.array([{}], dtype=object), "damaged"),
    ],
)
def test_damaged_files_are_refused(name: str, array: np.ndarray, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(10, np.uint8))
    np.save(tmp_path / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8))
    assert len(corruptions.load(tmp_path, "fog", 5)) == 2
    np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=said):
        corruptions.load(tmp_path, "fog", 5)


@given(raw=st.binary(max_size=200))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_bytes_are_a_damaged_file(raw: bytes, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(10, np.uint8))
    (tmp_path / "fog.npy").write_bytes(raw)
    with pytest.raises(DataError):
        corruptions.load(tmp_path, "fog", 1)


def test_what_does_not_exist_is_refused(test_set: datasets.ImageSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corruption"):
        corruptions.load(tmp_path, "rain", 1)
    with pytest.raises(DataError, match="no corruption"):
        corruptions.load(tmp_path, "fog", 6)
    with pytest.raises(DataError, match="is missing"):
        corruptions.load(tmp_path, "fog", 1)
    digits = datasets.ImageSet("mnist", "test", torch.zeros(1, 1, 28, 28), torch.zeros(1), [])
    with pytest.raises(DataError, match="need images of"):
        corruptions.generate(digits, tmp_path, corrupt=marked)


def test_without_the_package_the_message_says_what_to_install(
    test_set: datasets.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(MissingPackage, match="pip install imagecorruptions-imaug"):
        corruptions.generate(test_set, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_package_draws_every_kind(test_set: datasets.ImageSet, tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions", exc_type=ImportError)
    smooth = torch.linspace(60, 200, 32).to(torch.uint8).expand(1, 3, 32, 32).contiguous()
    one = datasets.ImageSet("ramp", "test", smooth, torch.zeros(1, dtype=torch.long), [])
    corruptions.generate(one, tmp_path)
    for kind in corruptions.NAMES:
        weak, strong = (corruptions.load(tmp_path, kind, s).images.float() for s in (1, 5))
        assert (strong - smooth).abs().mean() > 0.5, kind
        assert weak.shape == smooth.shape
    assert json.loads((tmp_path / "source.json").read_text())["made_by"] == corruptions.PACKAGE
