from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from export import graphs
from metastable.bundle import Bundle
from metastable.networks.denoising_energy import DenoisingEnergy
from metastable.networks.energy import ACTIVATIONS, Activation, EnergyNetwork
from metastable.networks.onnx_classifier import OnnxClassifier

pytestmark = pytest.mark.slow


def shapes(values: object) -> dict[str, list[str | int]]:
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in values  # type: ignore[attr-defined]
    }


def test_names_and_shapes_are_stable_and_the_batch_is_free(tiny_graphs: dict[str, bytes]) -> None:
    assert set(tiny_graphs) == {"score", "energy", "classifier"}
    images = ["batch", 3, 32, 32]
    for name, data in tiny_graphs.items():
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model, full_check=True)
        outputs = {"logits": ["batch", 10]} if name == "classifier" else {"score": images}
        assert shapes(model.graph.input) == {"x": images}
        assert shapes(model.graph.output) == outputs


def test_graphs_hold_standard_operators_and_nothing_of_this_machine(tiny_graphs: dict[str, bytes]) -> None:
    for data in tiny_graphs.values():
        model = onnx.load_from_string(data)
        assert {node.domain for node in model.graph.node} == {""}
        assert [o.version for o in model.opset_import if o.domain == ""] == [graphs.OPSET]
        assert not model.functions
        assert b"/" not in b"".join(
            node.doc_string.encode() + b"".join(p.value.encode() for p in node.metadata_props)
            for node in model.graph.node
        )
        assert b".py" not in data


def test_exporting_twice_gives_the_same_bytes(tiny: Bundle, tiny_graphs: dict[str, bytes]) -> None:
    again = graphs.export(graphs.Scored(tiny.networks["energy"]), tiny.shape, "score")
    assert again == tiny_graphs["energy"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [1, 5])
def test_odd_sizes_export_too(size: int, activation: Activation) -> None:
    """28 x 28 is halved to 7 and 3: the transposed convolutions must give the lost row back."""
    torch.manual_seed(0)
    network = EnergyNetwork(1, 28, features=4, activation=activation)
    session = ort.InferenceSession(graphs.export(graphs.Scored(network), (1, 28, 28), "score"))
    x = torch.rand(size, 1, 28, 28)
    (got,) = session.run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(got), network.score(x), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (30, 29)])
def test_an_energy_that_denoises_exports_its_score(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = DenoisingEnergy(3, (8, 12)).eval()
    session = ort.InferenceSession(graphs.export(graphs.Scored(network), (3, *size), "score"))
    for count in (1, 5):
        x = torch.rand(count, 3, *size)
        (got,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), network.score(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [32, 16])
def test_a_brought_classifier_has_our_names_and_its_own_opset(tiny: Bundle, size: int) -> None:
    """Its names may be ours for other things: here its logits are called `x`."""
    value, axes = helper.make_tensor_value_info, np.array([2, 3], np.int64)
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixels", "logits"], ["x"], keepdims=0)],
        "theirs",
        [value("pixels", onnx.TensorProto.FLOAT, ["n", 3, size, size])],
        [value("x", onnx.TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(axes, "logits")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    classifier = OnnxClassifier(
        model.SerializeToString(), size=(size, size), mean=(0.5,) * 3, std=(0.1, 0.2, 0.3)
    )
    made = graphs.build(dataclasses.replace(tiny, networks={}, classifier=classifier))["classifier"]
    found = onnx.load_from_string(made)
    assert shapes(found.graph.input) == {"x": ["batch", 3, 32, 32]}
    assert [one.name for one in found.graph.output] == ["logits"]
    assert [one.version for one in found.opset_import] == [18]
    images = torch.rand(3, 3, 32, 32)
    (got,) = ort.InferenceSession(made).run(None, {"x": images.numpy()})
    assert torch.allclose(torch.from_numpy(got), classifier(images), atol=1e-5)


def test_export_leaves_the_module_in_place() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graphs.export(module, (1, 4, 4), "out")
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
