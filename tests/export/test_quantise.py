from __future__ import annotations

import onnx
import pytest
import torch

from export import graphs, quantise
from metastable.bundle import Bundle
from metastable.engine.runners.onnx_runner import OnnxRunner
from metastable.engine.runners.openvino_runner import OpenVinoRunner

pytestmark = pytest.mark.slow

IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def quantised(tiny: Bundle) -> dict[str, bytes]:
    return quantise.build(tiny, IMAGES)


def test_quantised_graphs_are_close_on_both_runtimes(tiny: Bundle, quantised: dict[str, bytes]) -> None:
    assert set(quantised) == {"score", "energy", "classifier"}
    for runner in (
        OpenVinoRunner(quantised, precision="int8", threads=1),
        OnnxRunner(quantised, precision="int8", threads=1),
    ):
        for name, score in tiny.scores.items():
            wanted = score(IMAGES)
            error = (runner.score(name, IMAGES) - wanted).flatten(1).norm(dim=1)
            assert (error / wanted.flatten(1).norm(dim=1)).median() < 0.2
        wanted = tiny.classifier(IMAGES)
        assert (runner.classify(IMAGES) - wanted).norm() < 0.2 * wanted.norm()


def test_layers_next_to_the_image_stay_float(quantised: dict[str, bytes]) -> None:
    for data in quantised.values():
        model = onnx.load_from_string(data)
        made_by = {output: node.op_type for node in model.graph.node for output in node.output}
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        eight = ["DequantizeLinear" in map(made_by.get, node.input) for node in convolutions]
        assert not eight[0]
        assert any(eight)


def test_calibration_sees_noisy_and_purified_states(tiny: Bundle) -> None:
    seen = quantise.calibration(tiny, IMAGES)
    assert set(seen) == {"score", "energy", "classifier"}
    for states in seen.values():
        assert len(states) >= 3 * len(IMAGES)
        assert torch.equal(states[: len(IMAGES)], IMAGES)


def test_equal_images_give_equal_bytes(tiny: Bundle, quantised: dict[str, bytes]) -> None:
    seen = quantise.calibration(tiny, IMAGES)["classifier"]
    graph = graphs.export(tiny.classifier, tiny.shape, "logits")
    assert quantise.quantise(graph, seen) == quantised["classifier"]
