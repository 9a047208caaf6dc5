import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metastable.cli import main
from tests.bundle.test_purifier import write


def test_it_measures_the_pictures_that_are_held_out(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "plain")
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        pixels = np.full((100, 120, 3), rng.integers(60, 200), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    command = ["evaluate", "denoising", "--pictures", str(tmp_path / "pictures"), "--held-out", "0.5"]
    assert main([*command, "--bundle", str(folder), "--out", str(tmp_path / "found.json")]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == json.loads((tmp_path / "found.json").read_text())
    assert 0 < len(said["held_out"]) < said["pictures"] == 4
    assert set(said["psnr"]["colour"]) == {"0.05", "0.1", "0.15", "0.25"}
    assert main([*command, "--bundle", str(tiny_folder)]) == 2
    assert "no score network for photographs" in capsys.readouterr().err
