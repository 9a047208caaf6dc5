"""Bundles that are no squares, with a classifier that came as a graph and a fit of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client import CollectorRegistry

from handlers.service import Request, Service
from metastable import anomaly, bundle, datasets
from metastable.bundle import Bundle, files, manifest
from metastable.cli import local, main
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import BundleError
from metastable.images import STRETCH, Fit
from metastable.library import Defense
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork
from metastable.serving.metrics import Metrics
from tests.bundle.test_folder import change
from tests.conftest import SETTINGS

helper = pytest.importorskip("onnx.helper")
numpy_helper = pytest.importorskip("onnx.numpy_helper")
CASES = {
    "colour": ((3, 48, 64), (48, 64), Fit("crop", 0.875, "bilinear")),
    "gray": ((1, 20, 36), (20, 36), Fit("crop", 1.0, "lanczos")),
    "resized": ((3, 30, 17), (24, 40), STRETCH),
}
"""The shape of images, what the graph takes, and the fit of pictures."""


def graph(channels: int, height: int, width: int, classes: int = 3) -> bytes:
    """Images of this height and width to logits by one matrix."""
    rng = np.random.default_rng(0)
    flat = channels * height * width
    matrix = (rng.normal(size=(flat, classes)) / flat**0.5).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    made = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", 1, ["batch", channels, height, width])],
        [helper.make_tensor_value_info("y", 1, ["batch", classes])],
        [numpy_helper.from_array(matrix, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    raw: bytes = model.SerializeToString()
    return raw


def write(folder: Path, shape: tuple[int, int, int], size: tuple[int, int], fit: Fit, **given: Any) -> Path:
    torch.manual_seed(0)
    channels, *image = shape
    score = ScoreNetwork(channels, (4, 6, 8))
    for parameter in score.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    arguments = {"channels": channels, "widths": [4, 6, 8]}
    energy = {"channels": channels, "size": 16, "features": 4}
    numbers = (0.5,) * channels
    classifier = bundle.stored_onnx(
        graph(channels, *size), size=size, mean=numbers, std=numbers, to=(image[0], image[1])
    )
    norms = anomaly.score_norms(torch.rand(60, *shape), score.score)
    bundle.write_stored(
        folder,
        {
            "classifier": classifier,
            "score": bundle.stored_network(score, arguments, half=False),
            "energy": bundle.stored_network(EnergyNetwork(channels, 16, 4), energy, half=False),
        },
        **{
            "name": "sized",
            "version": "1",
            "classes": ["a", "b", "c"],
            "shape": shape,
            "settings": SETTINGS,
            "anomaly": anomaly.calibrate(
                norms, false_positive_rate=0.05, network="score", data={"name": "x"}
            ),
            "provenance": bundle.Provenance(),
            "fit": fit,
            **given,
        },
    )
    return folder


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Bundle]:
    folder = write(tmp_path / "sized", *CASES[request.param])
    return folder, bundle.load(folder)


def pictures(folder: Path, n: int, channels: int = 3) -> list[Path]:
    """Photographs of sorts, all of other sizes."""
    folder.mkdir()
    rng, made = np.random.default_rng(1), []
    for i in range(n):
        rows, columns = rng.integers(20, 90, 2)
        y, x = np.mgrid[:rows, :columns]
        waves = 127 + 60 * np.sin(x / rng.integers(3, 9)) + 60 * np.cos(y / rng.integers(3, 9))
        noisy = waves[..., None] + rng.normal(0, 9, (rows, columns, channels))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8).squeeze())
        image.save(folder / f"{i:02}.png")
        made.append(folder / f"{i:02}.png")
    return made


def middle(path: Path, shape: tuple[int, int, int], fit: Fit) -> torch.Tensor:
    """What torchvision's Resize and CenterCrop do with Pillow: float32 [C, H, W]."""
    image = Image.open(path).convert("RGB" if shape[0] == 3 else "L")
    tall, wide = (round(side / fit.share) for side in shape[1:])
    scale = max(tall / image.height, wide / image.width)
    sides = (round(image.height * scale, 6), round(image.width * scale, 6))
    whole = image.resize((int(sides[1]), int(sides[0])), manifest.INTERPOLATIONS[fit.interpolation])
    top, left = (
        round((have - want) / 2) for have, want in zip((whole.height, whole.width), shape[1:], strict=True)
    )
    pixels = np.asarray(whole.crop((left, top, left + shape[2], top + shape[1])))
    return torch.from_numpy(pixels.copy()).float().div(255).reshape(*shape[1:], shape[0]).movedim(-1, 0)


def test_it_loads_and_every_setting_answers(case: tuple[Path, Bundle], tmp_path: Path) -> None:
    folder, loaded = case
    paths = pictures(tmp_path / "photos", 3)
    assert loaded.classifier(torch.rand(2, *loaded.shape)).shape == (2, 3)
    with Defense(loaded, TorchRunner(loaded.networks, loaded.classifier)) as defense:
        for setting in loaded.settings.names:
            found = defense.purify([*paths], setting=setting)
            assert [purified.shape for _, purified in found] == [loaded.shape] * 3
            assert {verdict.class_name for verdict, _ in found} <= {"a", "b", "c"}
    assert main(["bundle", "check", str(folder)]) == 0


def test_all_who_decode_make_the_same_images(case: tuple[Path, Bundle], tmp_path: Path) -> None:
    _, loaded = case
    paths = pictures(tmp_path / "photos", 6)
    read = torch.stack([image.pixels for image in local.read(paths, loaded)])
    service = Service(loaded, Metrics(CollectorRegistry()), TorchRunner(loaded.networks, loaded.classifier))
    bodies = [Request(str(i), {}, {"body": path.read_bytes()}) for i, path in enumerate(paths)]
    seen: list[torch.Tensor] = []
    inspector = service._inspector
    service._inspector = lambda images: seen.append(images) or inspector(images)  # type: ignore[assignment,func-returns-value]
    answers = [json.loads(response.body) for response in service.answer(bodies)]
    assert torch.equal(torch.cat(seen), read)
    assert all("cropped to the middle" in answer["image"]["notes"] for answer in answers) == (
        loaded.fit != STRETCH
    )
    given = datasets.Folder(path=tmp_path / "photos", shape=loaded.shape, fit=loaded.fit, test_share=1)
    whole = datasets.to_float(given.split("test").whole().images)
    assert sorted(map(float, whole.mean((1, 2, 3)))) == pytest.approx(
        sorted(map(float, read.mean((1, 2, 3)))), abs=2e-3
    )
    if loaded.fit != STRETCH and loaded.shape[0] == 3:  # Pillow's gray is rounded before it is resized
        for path, image in zip(paths, read, strict=True):
            assert (image - middle(path, loaded.shape, loaded.fit)).abs().max() <= 1 / 255


def test_it_is_calibrated_on_a_folder(case: tuple[Path, Bundle], tmp_path: Path, capsys: Any) -> None:
    folder, loaded = case
    pictures(tmp_path / "photos", 40)
    given = ["--images", str(tmp_path / "photos"), "--test-share", "0.1"]
    assert main(["calibrate", "--bundle", str(folder), *given, "--shift", "fast"]) == 0
    made = bundle.load(folder)
    assert made.fit == loaded.fit
    assert made.anomaly is not None
    assert made.anomaly.n == 36
    assert set(made.shifts) == {"fast"}
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["pictures"]["shape"] == list(loaded.shape)
    assert said["pictures"].get("fit") == (None if loaded.fit == STRETCH else dataclasses.asdict(loaded.fit))


def test_purify_and_ask_read_pictures_so(case: tuple[Path, Bundle], tmp_path: Path, capsys: Any) -> None:
    folder, loaded = case
    [path] = pictures(tmp_path / "photos", 1)
    out = tmp_path / "out"
    assert main(["purify", str(path), "--bundle", str(folder), "--setting", "none", "--out", str(out)]) == 0
    made = np.asarray(Image.open(out / path.name)).reshape(*loaded.shape[1:], loaded.shape[0])
    [read] = local.read([path], loaded)
    assert np.array_equal(made, (255 * read.pixels).round().byte().movedim(0, -1).numpy())
    assert main(["bundle", "info", str(folder)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["fit"] == dataclasses.asdict(loaded.fit)


def test_what_is_written_is_what_is_read(case: tuple[Path, Bundle], tmp_path: Path) -> None:
    folder, loaded = case
    raw = json.loads((folder / "bundle.json").read_text())
    assert ("fit" in raw) == (loaded.fit != STRETCH)
    assert (raw["parts"]["classifier"]["resize"] is None) == (
        tuple(raw["parts"]["classifier"]["size"]) == loaded.shape[1:]
    )
    stored = bundle.stored_part(folder, "classifier")
    same: dict[str, Any] = {"classes": ["x", "y", "z"], "provenance": bundle.Provenance()}
    bundle.rewrite(folder, tmp_path / "again", stored, name="again", **same)
    assert bundle.load(tmp_path / "again").fit == loaded.fit
    other = Fit("crop", 0.5)
    bundle.rewrite(folder, tmp_path / "other", stored, name="o", fit=other, **same)
    assert bundle.load(tmp_path / "other").fit == other


def test_the_size_of_a_square_may_be_one_number(tmp_path: Path) -> None:
    folder = write(tmp_path / "square", (3, 24, 24), (16, 16), STRETCH)
    before = bundle.load(folder)
    parts = json.loads((folder / "bundle.json").read_text())["parts"]
    assert parts["classifier"]["size"] == [16, 16]
    change(folder, parts={**parts, "classifier": {**parts["classifier"], "size": 16}})
    x = torch.rand(2, 3, 24, 24)
    assert torch.equal(bundle.load(folder).classifier(x), before.classifier(x))


def test_as_many_classes_as_imagenet_has(tmp_path: Path) -> None:
    """21 841 of them, with long names: the manifest is bounded in bytes as well."""
    many = [f"{i} " + "long name " * 6 for i in range(21_841)]
    made = manifest.Manifest("many", "1", many, (3, 16, 16), {}, "0" * 64, None, bundle.Provenance())
    part = bundle.stored_onnx(b"", size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, to=(16, 16)).part
    raw = manifest.render(dataclasses.replace(made, parts={"classifier": part}))
    assert len(raw) < files.MANIFEST_BYTES
    assert manifest.parse(raw).classes == many
    over = [f"{i:05}" + "\N{HOURGLASS}" * 195 for i in range(32_768)]  # six bytes a character in JSON
    with pytest.raises(BundleError, match="shorten class names"):
        write(tmp_path / "over", (3, 16, 16), (16, 16), STRETCH, classes=over)


def test_a_fit_belongs_to_a_classifier(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="fit must be left out without a classifier"):
        bundle.write(
            tmp_path,
            name="plain",
            version="1",
            classes=[],
            shape=(3,),
            networks={"score": (ScoreNetwork(3, (4, 6, 8)), {"widths": [4, 6, 8]})},
            settings=SETTINGS.replace(
                "  langevin: {dynamics: langevin, network: energy",
                "  more: {dynamics: langevin, network: score",
            ),
            anomaly=None,
            fit=Fit("crop"),
        )
