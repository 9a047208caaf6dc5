from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
import torch

from export import fused
from metastable import noise
from metastable.bundle import Bundle
from metastable.defense import purify
from metastable.dynamics.adp import Adp
from metastable.dynamics.langevin import Langevin

pytestmark = pytest.mark.slow

X = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(4))
KEYS = [(7, chain) for chain in range(len(X))]


def test_every_walk_of_the_settings_has_a_graph(tiny_steps: dict[str, bytes]) -> None:
    assert list(tiny_steps) == ["adp-score-1", "adp-score-2", "langevin-energy-3"]
    for data in tiny_steps.values():
        model = onnx.load_from_string(data)
        assert {node.domain for node in model.graph.node} == {""}
        assert not [node for node in model.graph.node if node.op_type.startswith("Random")]
        assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(("name", "setting"), [("adp-score-2", "fast"), ("langevin-energy-3", "langevin")])
def test_a_graph_is_the_reference_with_its_noise(
    tiny: Bundle, tiny_steps: dict[str, bytes], name: str, setting: str, size: int
) -> None:
    chosen, x, keys = tiny.settings[setting], X[:size], KEYS[:size]
    shape = tiny.shape
    moves = chosen.dynamics
    z = noise.normal(keys, 0, shape)
    if isinstance(moves, Adp):
        fraction, low, high, stop = moves.row(flagged=True)
        columns = {"sigma": moves.sigma, "fraction": fraction, "low": low, "high": high, "stop": stop}
    else:
        assert isinstance(moves, Langevin)
        columns = {"tau": moves.tau}
        z = torch.stack([noise.normal(keys, t, shape) for t in range(chosen.steps)])
    inputs = {"x": x, "noise": z} | {k: torch.full((size,), v) for k, v in columns.items()}
    session = ort.InferenceSession(tiny_steps[name])
    got = torch.from_numpy(session.run(["y"], {k: v.numpy() for k, v in inputs.items()})[0])
    wanted, _ = purify(x, keys, chosen, tiny.scores[chosen.network], torch.ones(size, dtype=torch.bool))
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(got, x, atol=1e-2)


def test_without_settings_that_walk_there_is_langevin_on_the_energy(tiny: Bundle) -> None:
    settings = tiny.settings.__class__({"none": tiny.settings["none"]}, "none", 1, 1)
    bundle = Bundle(**{**vars(tiny), "settings": settings})
    assert list(fused.planned(bundle)) == [f"langevin-energy-{fused.LONGEST}"]
