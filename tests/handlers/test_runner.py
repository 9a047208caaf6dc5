"""One word in the configuration changes the runner: each answers from an archive's folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from export import aot
from handlers.requests import Request
from handlers.runner import runner_for
from handlers.service import Service
from metastable import bundle
from metastable.bundle import Bundle
from metastable.engine.runners import artifacts
from metastable.errors import MissingPackage
from metastable.serving.metrics import Metrics

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def threads() -> object:
    """As many threads for PyTorch as before: `runner_for` takes them away where they are not needed."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def asked(loaded: Bundle, folder: Path, runner: str, image: bytes, setting: str) -> dict[str, object]:
    """What a server says of the image that has the artifacts in `folder`."""
    made = runner_for(loaded, artifacts.read(folder), runner, threads=1)
    service = Service(loaded, Metrics(CollectorRegistry(), settings=loaded.settings.names), made)
    request = Request("1", {"X-Metastable-Setting": setting}, {"body": image})
    [response] = service.answer([request])
    assert response is not None
    assert response.status == 200, response.body
    verdict: dict[str, object] = json.loads(response.body)
    return verdict


def folder_of(path: Path, kind: str, files: dict[str, bytes], suffix: str) -> Path:
    (path / kind).mkdir()
    for name, data in files.items():
        (path / kind / f"{name}{suffix}").write_bytes(data)
    return path


@pytest.mark.parametrize("runner", ["onnx-int8", "openvino-int8"])
def test_eight_bits_know_the_cat(root: Path, shipped: Path, runner: str) -> None:
    folder = root / "model_store" / "artifacts" / "cifar10"
    image = (root / "samples" / "cat.png").read_bytes()
    verdict = asked(bundle.load(shipped), folder, runner, image, "fast")
    assert (verdict["runner"], verdict["class"]) == (runner, "cat")


@pytest.mark.parametrize("runner", ["torch", "torch-bf16", "onnx", "openvino", "openvino-bf16"])
def test_the_others_answer_too(
    root: Path, tiny: Bundle, tiny_graphs: dict[str, bytes], tmp_path: Path, runner: str
) -> None:
    folder = folder_of(tmp_path, "onnx", tiny_graphs, ".onnx")
    verdict = asked(tiny, folder, runner, (root / "samples" / "cat.png").read_bytes(), "langevin")
    assert verdict["runner"] == runner


@pytest.mark.skipif(not shutil.which("g++"), reason="packages are built with a C++ compiler")
def test_packages_answer_too(root: Path, tiny: Bundle, tmp_path: Path) -> None:
    fast = dataclasses.replace(tiny.settings, by_name={"fast": tiny.settings["fast"]})
    smaller = dataclasses.replace(tiny, networks={"score": tiny.networks["score"]}, settings=fast)
    folder = folder_of(tmp_path, "aot", aot.build(smaller), ".pt2")
    verdict = asked(smaller, folder, "aot", (root / "samples" / "cat.png").read_bytes(), "fast")
    assert verdict["runner"] == "aot"


def test_what_the_archive_lacks_is_said(tiny: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MissingPackage, match="openvino-int8 needs artifact onnx-int8, which is not here"):
        runner_for(tiny, artifacts.read(tmp_path), "openvino-int8", threads=1)
