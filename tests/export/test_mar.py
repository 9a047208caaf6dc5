"""What an archive holds follows from the runner that its configuration names."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export import mar
from metastable.errors import BundleError, SettingsError

Config = Callable[[str], Path]


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Config:
    """The shipped configuration with another runner."""

    def make(runner: str) -> Path:
        text = (root / "model-config.yaml").read_text()
        assert text.count("runner: auto") == 1
        path = tmp_path / "model-config.yaml"
        path.write_text(text.replace("runner: auto", f"runner: {runner}"))
        return path

    return make


def exported(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as packed:
        return sorted(name for name in packed.namelist() if name.startswith("artifacts/") and name[-1] != "/")


@pytest.mark.slow
def test_the_runner_decides_what_is_packed(root: Path, shipped: Path, tmp_path: Path, config: Config) -> None:
    archive = tmp_path / "out.mar"
    mar.build(shipped, config("torch"), archive)
    assert exported(archive) == []
    for runner in ("openvino-int8", "onnx-int8"):
        mar.build(shipped, config(runner), archive, root / "model_store" / "artifacts" / "cifar10")
        assert exported(archive) == [
            f"artifacts/onnx-int8/{name}.onnx" for name in ("classifier", "energy", "score")
        ]


@pytest.mark.slow
def test_float32_graphs_are_made_on_the_way(tiny_folder: Path, tmp_path: Path, config: Config) -> None:
    archive = tmp_path / "out.mar"
    mar.build(tiny_folder, config("auto"), archive)
    assert exported(archive) == [f"artifacts/onnx/{name}.onnx" for name in ("classifier", "energy", "score")]


def test_what_is_not_there_is_asked_for(
    root: Path, tiny_folder: Path, tmp_path: Path, config: Config
) -> None:
    archive = tmp_path / "out.mar"
    with pytest.raises(BundleError, match="the runner needs artifact onnx-int8: pass"):
        mar.build(tiny_folder, config("onnx-int8"), archive)
    with pytest.raises(BundleError, match=r"there is no artifact aot in .*: make it with"):
        mar.build(tiny_folder, config("aot"), archive, tmp_path)
    with pytest.raises(BundleError, match="of other weights: export it again"):
        mar.build(tiny_folder, config("onnx-int8"), archive, root / "model_store" / "artifacts" / "cifar10")
    assert not archive.exists()


def test_a_runner_that_is_none_is_refused(tiny_folder: Path, tmp_path: Path, config: Config) -> None:
    with pytest.raises(SettingsError, match="runner must be one of auto, torch"):
        mar.build(tiny_folder, config("magic"), tmp_path / "out.mar")
    (tmp_path / "bad.yaml").write_text("handler: [")
    with pytest.raises(SettingsError, match=r"bad\.yaml cannot be read"):
        mar.build(tiny_folder, tmp_path / "bad.yaml", tmp_path / "out.mar")


def test_bodies_above_the_limit_are_told(tiny_folder: Path, config: Config) -> None:
    assert mar.notes(tiny_folder, config("torch")) == []
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 32, 32), np.float32))
    for most, told in ((len(buffer.getvalue()), 0), (len(buffer.getvalue()) - 1, 1)):
        path = config("torch")
        text = path.read_text()
        assert text.count("max_bytes: 2000000") == 1
        path.write_text(text.replace("max_bytes: 2000000", f"max_bytes: {most}"))
        found = mar.notes(tiny_folder, path)
        assert len(found) == told
        assert all(f"above max_bytes {most}: raise that in model-config.yaml" in note for note in found)
