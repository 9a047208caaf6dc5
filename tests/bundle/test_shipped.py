from pathlib import Path

import pytest

from metastable import bundle
from metastable.bundle import shipped
from metastable.errors import BundleError


def test_a_name_is_a_folder_of_the_model_store(root: Path) -> None:
    assert {"cifar10", "cifar10-hardened", "mnist"} <= set(shipped.names())
    assert shipped.folder("mnist") == root / "model_store" / "mnist"
    for name in shipped.names():
        assert bundle.load(shipped.folder(name)).anomaly is not None


def test_paths_are_taken_as_they_are(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped.folder(tiny_folder) == tiny_folder
    assert shipped.folder(str(tiny_folder)) == tiny_folder
    monkeypatch.chdir(tiny_folder.parent)
    assert shipped.folder(f"./{tiny_folder.name}").resolve() == tiny_folder
    assert shipped.folder(Path(tiny_folder.name)).resolve() == tiny_folder


def test_unknown_names_and_empty_folders_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(BundleError, match=r"no bundle 'cifar': name one of cifar10, .*or give the path"):
        shipped.folder("cifar")
    with pytest.raises(BundleError, match=r"for the folder mine that is here write './mine'"):
        shipped.folder("mine")
    with pytest.raises(BundleError, match=r"holds no bundle, .*cifar10"):
        shipped.folder("./mine")
