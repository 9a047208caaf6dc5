"""Bundles without a classifier: they purify, are a base for others, and everything else refuses them."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metastable
from metastable import bundle
from metastable.cli import main, purify
from metastable.errors import BundleError
from metastable.networks.score import ScoreNetwork
from metastable.networks.unshuffled import UnshuffledUNet
from tests.bundle.test_folder import change

SETTINGS = """
default: soft
caps: {chains: 16, steps: 20}
settings:
  none: {dynamics: none}
  soft: {dynamics: adp, chains: 2, steps: 1, sigma: 0.1, step_fraction: 1.0, step_bounds: [1.0, 1.0]}
"""


def write(folder: Path, network: torch.nn.Module | None = None, **arguments: int) -> Path:
    torch.manual_seed(0)
    given = {"widths": [4, 6, 8], "blocks": 1, **arguments}
    bundle.write(
        folder,
        name="plain",
        version="1.0",
        classes=[],
        shape=(3,),
        networks={"score": (network or UnshuffledUNet((4, 6, 8), 1), given)},
        settings=SETTINGS,
        anomaly=None,
    )
    return folder


def linear_graph(channels: int, size: int, classes: int) -> bytes:
    """Images to logits by one matrix."""
    helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(channels * size * size, classes)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", 1, ["batch", channels, size, size])],
        [helper.make_tensor_value_info("y", 1, ["batch", classes])],
        [numpy_helper.from_array(matrix, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    raw: bytes = model.SerializeToString()
    return raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain") / "plain")


def test_round_trip(folder: Path) -> None:
    assert not bundle.classifies(folder)
    loaded = bundle.load_purifier(folder)
    assert (loaded.name, loaded.channels, set(loaded.networks)) == ("plain", 3, {"score"})
    assert json.loads((folder / "bundle.json").read_text())["shape"] == [3]
    for shape in [(1, 3, 9, 30), (2, 1, 16, 8)]:
        assert loaded.scores["score"](torch.rand(shape)).shape == shape
    assert not any(p.requires_grad for p in loaded.networks["score"].parameters())


def test_what_needs_a_classifier_says_so_in_a_sentence(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"plain has no classifier: it purifies .* base for a classifier"):
        bundle.load(folder)
    with pytest.raises(BundleError, match="has no classifier"):
        metastable.load(folder)
    with pytest.raises(BundleError, match="has no classifier"):
        bundle.network(folder, "score")


@pytest.mark.parametrize(
    "values", [{"classes": ["a", "b"]}, {"shape": [3, 32, 32]}, {"shape": [2]}, {"shape": []}, {"parts": {}}]
)
def test_classes_and_sizes_belong_to_a_classifier(folder: Path, tmp_path: Path, values: dict) -> None:
    shutil.copytree(folder, tmp_path / "b")
    change(tmp_path / "b", **values)
    with pytest.raises(BundleError, match=r"(classes|shape|parts) must be"):
        bundle.load_purifier(tmp_path / "b")


def test_a_classifier_has_classes_and_a_size(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "b")
    for values in ({"classes": []}, {"shape": [3]}):
        change(tmp_path / "b", **values)
        with pytest.raises(BundleError, match=r"(classes|shape) must be"):
            bundle.load(tmp_path / "b")


def test_networks_must_take_the_images(tmp_path: Path) -> None:
    write(tmp_path, ScoreNetwork(1, (4, 6, 8), 1), channels=1)
    with pytest.raises(BundleError, match=r"score.safetensors does not take images \[3, 1, 1\]"):
        bundle.load_purifier(tmp_path)


def test_images_are_purified_at_their_own_size(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (21, 50, 3), dtype=np.uint8)
    gray = rng.integers(0, 256, (30, 17), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(gray).save(tmp_path / "gray.png")
    given = [str(tmp_path / "wide.png"), str(tmp_path / "gray.png")]
    out = tmp_path / "out"
    main(["purify", *given, "--bundle", str(folder), "--setting", "none", "--out", str(out)])
    assert np.array_equal(np.asarray(Image.open(out / "wide.png")), wide)
    assert np.array_equal(np.asarray(Image.open(out / "gray.png")), gray)
    main(["purify", *given, "--bundle", str(folder), "--out", str(out)])
    made = np.asarray(Image.open(out / "wide.png"))
    assert made.shape == wide.shape
    assert not np.array_equal(made, wide)
    assert np.asarray(Image.open(out / "gray.png")).shape == gray.shape
    said = capsys.readouterr().out
    assert f"{given[0]}: 50 x 21 pixels" in said
    assert not (out / "verdicts.json").exists()
    Image.fromarray(gray[:1]).save(tmp_path / "low.png")
    main(["purify", str(tmp_path / "low.png"), "--bundle", str(folder), "--out", str(out)])
    assert np.asarray(Image.open(out / "low.png")).shape == (1, 17)


def test_the_mean_is_over_fresh_chains(folder: Path) -> None:
    loaded, image = bundle.load_purifier(folder), torch.full((3, 64, 64), 0.5)
    few = loaded.settings["soft"]
    differences = {}
    for chains in (2, 8):
        setting = dataclasses.replace(few, chains=chains)
        one, other = (purify.mean(image, loaded, setting) for _ in range(2))
        differences[chains] = float((one - other).std())
    assert differences[8] == pytest.approx(differences[2] / 2, rel=0.2)


def test_bundle_info_and_check_know_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bundle", "info", str(folder)])
    said = capsys.readouterr().out
    assert "no classifier, images of 3 channels and any size" in said
    assert "UnshuffledUNet" in said
    found = json.loads(said.splitlines()[-1])
    assert (found["shape"], found["classes"], found["anomaly"]) == ([3], [], None)
    main(["bundle", "check", str(folder)])
    assert "setting soft: purifies" in capsys.readouterr().out


def test_a_classifier_is_brought_at_its_own_size(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from export import bring  # needs onnx, which the other tests do without

    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    for channels, size in ((3, 24), (1, 28)):
        graph = tmp_path / f"{channels}.onnx"
        graph.write_bytes(linear_graph(channels, size, 3))
        numbers = (0.5,) * channels
        newcomer = bring.Newcomer(graph, classes=tmp_path / "classes.txt", mean=numbers, std=numbers)
        out = tmp_path / f"brought-{channels}"
        found = bring.bring(newcomer, folder, out, name="brought")
        assert not found["resized"]
        made = bundle.load(out)
        assert made.shape == (channels, size, size)
        assert made.classes == ["cat", "dog", "owl"]
        assert made.settings.default == "soft"
        x = torch.rand(2, *made.shape)
        assert made.scores["score"](x).shape == x.shape


def test_arguments_of_purify_take_a_name_or_a_path(folder: Path) -> None:
    parser = argparse.ArgumentParser()
    purify.fill(parser)
    assert parser.parse_args(["x.png"]).bundle == "model_store/cifar10"
