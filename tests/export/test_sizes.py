"""Images of other sizes: graphs of them on every runner are the bundle, within the limits of artifacts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from export import fused, fused_parity, graphs, parity, quantise, real_images
from metastable.bundle import Bundle
from metastable.datasets import Folder
from metastable.engine.runners import Runner
from metastable.engine.runners.onnx_runner import OnnxRunner
from metastable.engine.runners.openvino_runner import OpenVinoRunner
from metastable.networks.onnx_classifier import OnnxClassifier
from metastable.networks.unshuffled import UnshuffledUNet

NAMES = ("red", "green", "blue")


class Look(nn.Module):
    """Logits of three classes of images of any size, resized inside, as in many exported networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(self.conv(x).relu(), scale_factor=2.0, mode="bilinear", align_corners=False)
        out: Tensor = self.head(h.mean((2, 3)))
        return out


def sized(tiny: Bundle, height: int, width: int, classifier: nn.Module | None = None) -> Bundle:
    """A bundle in memory, with a network for images of any size."""
    torch.manual_seed(3)
    of_score = {name: one for name, one in tiny.settings.by_name.items() if one.network in ("", "score")}
    return replace(
        tiny,
        shape=(3, height, width),
        classes=list(NAMES),
        networks={"score": UnshuffledUNet(widths=(4, 8, 8), blocks=1).eval()},
        classifier=(classifier or Look()).eval(),
        settings=replace(tiny.settings, by_name=of_score),
        anomaly=None,
    )


def brought(size: int, folder: Path) -> OnnxClassifier:
    """The same classifier as a graph of somebody's own, with a Resize in it."""
    path = folder / "model.onnx"
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Look().eval(), (torch.rand(2, 3, size, size),), path, dynamo=False, input_names=["x"],
            output_names=["y"], dynamic_axes=axes, opset_version=18,
        )  # fmt: skip
    graph = path.read_bytes()
    assert "Resize" in {node.op_type for node in onnx.load_from_string(graph).graph.node}
    return OnnxClassifier(graph, size=(size, size), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def images(n: int, bundle: Bundle) -> Tensor:
    """Smooth ones, as pictures are."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, bundle.shape[1:], mode="bilinear")


RUNNERS: dict[str, Callable[[dict[str, bytes]], Runner]] = {
    "onnx": lambda made: OnnxRunner(made, threads=1),
    "openvino": lambda made: OpenVinoRunner(dict(made), threads=1),
}


@pytest.fixture(scope="module")
def wide(tiny: Bundle) -> tuple[Bundle, dict[str, bytes]]:
    bundle = sized(tiny, 48, 60)
    return bundle, graphs.build(bundle)


@pytest.mark.parametrize("name", RUNNERS)
def test_images_that_are_not_square(name: str, wide: tuple[Bundle, dict[str, bytes]]) -> None:
    bundle, made = wide
    figures = parity.measure(RUNNERS[name](made), parity.Reference(bundle, images(9, bundle)))
    parity.judge(name, figures, "float32")
    assert figures["labels"]["fast"]["n"] == 9


@pytest.mark.slow
def test_fused_steps_of_images_that_are_not_square(wide: tuple[Bundle, dict[str, bytes]]) -> None:
    bundle, _ = wide
    reference = parity.Reference(bundle, images(3, bundle))
    parity.judge("onnx-steps", fused_parity.measure(fused.build(bundle), reference), "float32, fused steps")


def test_eight_bits_of_images_that_are_not_square(wide: tuple[Bundle, dict[str, bytes]]) -> None:
    bundle, _ = wide
    made = quantise.build(bundle, images(8, bundle))
    runner = OnnxRunner(made, precision="int8", threads=1)
    parity.judge("int8", parity.measure(runner, parity.Reference(bundle, images(8, bundle))), "int8")
    # Behind the pixel unshuffle no convolution has as many channels as an image: they are known by name.
    graph = onnx.load_from_string(made["score"]).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    eight = [
        "DequantizeLinear" in map(made_by.get, node.input) for node in graph.node if node.op_type == "Conv"
    ]
    assert not eight[0]
    assert not eight[-1]
    assert any(eight)


@pytest.mark.parametrize("name", RUNNERS)
@pytest.mark.parametrize("to", [40, 24])
def test_a_brought_graph_with_a_resize_in_batches_of_any_size(
    name: str, to: int, tiny: Bundle, tmp_path: Path
) -> None:
    """OpenVINO crashed on such graphs with an open batch: each size has a graph of its own."""
    bundle = sized(tiny, 40, 40, brought(to, tmp_path))
    runner = RUNNERS[name]({graphs.CLASSIFIER: graphs.build(bundle)[graphs.CLASSIFIER]})
    for n in (1, 3, 8):
        x = images(n, bundle)
        torch.testing.assert_close(runner.classify(x), bundle.classifier(x), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def photo(tiny: Bundle) -> tuple[Bundle, dict[str, bytes]]:
    bundle = sized(tiny, 224, 224)
    return bundle, graphs.build(bundle)


@pytest.mark.parametrize("name", RUNNERS)
def test_a_photograph(name: str, photo: tuple[Bundle, dict[str, bytes]]) -> None:
    bundle, made = photo
    runner, x = RUNNERS[name](made), images(6, bundle)
    for got, wanted in (
        (runner.score("score", x), bundle.scores["score"](x)),
        (runner.classify(x), bundle.classifier(x)),
    ):
        assert parity.errors(got, wanted)["tail"] < 1e-3


def test_of_large_pictures_fewer_calibrate_and_judge(tmp_path: Path) -> None:
    assert real_images.judged((3, 32, 32)) == real_images.judged((3, 96, 96)) == 200
    assert 30 < real_images.judged((3, 224, 224)) < 60
    for i in range(60):
        Image.new("RGB", (20, 10), (4 * i, 0, 0)).save(tmp_path / f"{i}.png")
    calibration, real = real_images.of_folder(Folder(path=tmp_path, shape=(3, 224, 224), test_share=0.5), 5)
    assert calibration.shape == (20, 3, 224, 224)
    assert real.shape == (5, 3, 224, 224)
