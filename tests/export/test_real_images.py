from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import real_images
from metastable.errors import DataError


def test_a_folder_of_pictures_is_shared_out(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(np.full((40, 30, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    calibration, real = real_images.of_data(tmp_path, (3, 32, 24), 9)
    assert calibration.shape[1:] == real.shape[1:] == (3, 32, 24)
    found = [round(float(image.mean()) * 255 / 40) for image in (*calibration, *real)]
    assert sorted(found) == [*range(6)]
    assert len(real_images.of_data(tmp_path, (3, 32, 24), 2)[1]) == 2


def test_the_samples_are_pictures(root: Path) -> None:
    assert real_images.samples(root / "samples", (1, 28, 28), 99).shape == (10, 1, 28, 28)
    assert len(real_images.samples(root / "samples", (1, 28, 28), 3)) == 3


def test_a_folder_without_pictures_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no known data set of images of \(3, 32, 32\), and .*holds no pictures"
    ):
        real_images.of_data(tmp_path, (3, 32, 32), 2)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="none of them is for"):
        real_images.of_data(tmp_path, (3, 32, 32), 2)
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of 1 pictures in .* can be used: [ab]\.png"):
        real_images.of_data(tmp_path, (3, 32, 32), 2)
