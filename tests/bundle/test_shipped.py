from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metastable import bundle
from metastable.bundle import shipped
from metastable.errors import BundleError


@pytest.mark.slow
def test_a_name_is_a_folder_of_the_model_store(root: Path) -> None:
    assert {"cifar10", "cifar10-hardened", "mnist"} <= set(shipped.names())
    assert shipped.folder("mnist") == root / "model_store" / "mnist"
    for name in shipped.names():
        if bundle.classifies(shipped.folder(name)):
            assert bundle.load(shipped.folder(name)).anomaly is not None
    assert set(bundle.load_purifier(shipped.folder("natural")).networks) == {"score"}


def test_the_natural_purifier_is_small_and_removes_noise(root: Path) -> None:
    folder = root / "model_store" / "natural"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
    network = bundle.load_purifier(folder).networks["score"]
    with Image.open(root / "samples" / "cat.png") as image:
        pixels = np.asarray(image.convert("RGB").resize((96, 96), Image.Resampling.BICUBIC))
    clean = torch.from_numpy(pixels.copy()).movedim(-1, 0)[None].float() / 255
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.05, 0.15):
        for x in (clean, clean.mean(1, keepdim=True)):
            noisy = x + sigma * noise[:, : x.shape[1]]
            left = (noisy + network.score(noisy) - x).square().mean().sqrt()  # type: ignore[operator]
            assert left < 0.5 * sigma


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


def test_parsers_take_a_path_or_a_shipped_name(tiny_folder: Path) -> None:
    assert shipped.path("natural") == shipped.folder("natural")
    assert shipped.path(str(tiny_folder)) == tiny_folder
    assert shipped.path("nowhere/at/all") == Path("nowhere/at/all")  # what reads it says what is missing
