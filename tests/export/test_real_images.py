from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import real_images
from metastable.errors import DataError


def test_a_folder_of_pictures_is_shared_out(tmp_path: Path) -> None:
    for i in range(5):
        Image.fromarray(np.full((40, 30, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    calibration, real = real_images.of_data(tmp_path, (3, 32, 32), 2)
    assert calibration.shape == (3, 3, 32, 32)
    assert [float(image.mean()) * 255 for image in calibration] == pytest.approx([0, 100, 200], abs=0.1)
    assert [float(image.mean()) * 255 for image in real] == pytest.approx([50, 150], abs=0.1)


def test_the_samples_are_pictures(root: Path) -> None:
    assert real_images.of_folder(root / "samples", (1, 28, 28), 99).shape == (10, 1, 28, 28)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        real_images.of_data(tmp_path, (3, 32, 32), 2)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.png cannot be used"):
        real_images.of_folder(tmp_path, (3, 32, 32), 2)
