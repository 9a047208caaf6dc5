from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from export import __main__ as command
from export import artifacts, parity
from export.kinds import KINDS, Materials
from metastable.bundle import Bundle
from metastable.engine.runners import cards
from metastable.errors import BundleError, SettingsError

pytestmark = pytest.mark.slow

REAL = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(8))


def source(tiny: Bundle, graphs: dict[str, bytes]) -> Materials:
    made = Materials(tiny, None, REAL)
    made.__dict__["graphs"] = graphs  # exported once for all tests
    return made


@pytest.fixture(scope="module")
def made(
    tiny: Bundle, tiny_graphs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[artifacts.Built]]:
    out = tmp_path_factory.mktemp("artifacts")
    kinds = ("onnx", "onnx-int8", "openvino", "openvino-int8")
    return out, artifacts.build(source(tiny, tiny_graphs), out, kinds)


def test_what_can_be_is_made_and_the_rest_is_skipped_with_the_reason(
    made: tuple[Path, list[artifacts.Built]],
) -> None:
    out, outcomes = made
    assert {one.kind: one.state for one in outcomes} == {
        "onnx": "made", "onnx-int8": "skipped", "openvino": "made", "openvino-int8": "skipped",
    }  # fmt: skip
    assert all("training images" in one.reason for one in outcomes if one.state == "skipped")
    assert sorted(path.name for path in out.iterdir()) == ["onnx", "openvino"]


def test_cards_say_what_there_is_and_how_near_it_is(
    made: tuple[Path, list[artifacts.Built]], tiny: Bundle
) -> None:
    out, _ = made
    for kind in ("onnx", "openvino"):
        card = cards.read(out / kind)
        assert card["artifact"] == kind
        assert card["weights"] == tiny.parts
        assert set(card["parity"]["graphs"]) == {"score", "energy", "classifier"}
        assert {"unpurified", "fast", "langevin"} == set(card["parity"]["labels"])
        assert not list(parity.refusals(card["parity"], parity.TOLERANCES["float32"]))
        assert card["graphs"]["classifier"] == {
            "opset": 20,
            "inputs": {
                "x": {
                    "type": "float",
                    "shape": ["batch", 3, 32, 32],
                    "meaning": "images in [0, 1], or states of chains in the same unit",
                }
            },
            "outputs": {
                "logits": {
                    "type": "float",
                    "shape": ["batch", 10],
                    "meaning": "one a class, in the order of the bundle's class names",
                }
            },
        }
        assert str(out) not in (out / kind / cards.CARD).read_text()


def test_what_has_not_changed_is_kept_and_the_rest_made_again(
    made: tuple[Path, list[artifacts.Built]], tiny: Bundle, tiny_graphs: dict[str, bytes]
) -> None:
    out, _ = made
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    [kept] = artifacts.build(source(tiny, tiny_graphs), out, ["openvino"])
    assert kept.state == "kept"
    xml = out / "openvino" / "score.xml"
    xml.write_bytes(xml.read_bytes() + b" ")
    [again] = artifacts.build(source(tiny, tiny_graphs), out, ["openvino"])
    assert again.state == "made"
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before, "equal bundles, equal bytes"


@pytest.mark.parametrize("graph", ["energy", "classifier"])
def test_a_damaged_graph_is_refused_and_leaves_nothing(
    tiny: Bundle, tiny_graphs: dict[str, bytes], tmp_path: Path, graph: str
) -> None:
    model = onnx.load_from_string(tiny_graphs[graph])
    weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    values = numpy_helper.to_array(weight).copy()
    values[0] *= 1.01  # of one output channel
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    damaged = {**tiny_graphs, graph: model.SerializeToString()}
    with pytest.raises(BundleError, match=f"artifact onnx is refused.*{graph} on random images: median"):
        artifacts.build(source(tiny, damaged), tmp_path, ["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_skips(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("METASTABLE_DATA", raising=False)
    given = ["--bundle", str(tiny_folder), "--out", str(tmp_path / "out"), "--only", "onnx-int8"]
    monkeypatch.setattr("sys.argv", ["export", "all", *given])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"onnx-int8 +skipped +0\.0 MB  8 bits are calibrated on training images: pass", lines[0])
    found = json.loads(lines[-1])
    assert found["images"] == 10
    assert [one["state"] for one in found["artifacts"]] == ["skipped"]


def test_an_unknown_kind_is_refused_with_the_known_ones(tiny: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no artifacts \['magic'\]: choose from onnx, onnx-steps"):
        artifacts.build(Materials(tiny, None, REAL), tmp_path, ["magic"])


def test_the_shipped_int8_graphs_are_of_the_shipped_weights(root: Path, shipped: Path) -> None:
    folder = root / "model_store" / "artifacts" / "cifar10"
    weights = {k: v["sha256"] for k, v in json.loads((shipped / "bundle.json").read_text())["parts"].items()}
    found = cards.packed(folder / "onnx-int8", "onnx-int8", weights, {})
    assert set(found) == {"score.onnx", "energy.onnx", "classifier.onnx"}
    card = cards.read(folder / "onnx-int8")
    assert not list(parity.refusals(card["parity"], parity.TOLERANCES[KINDS["onnx-int8"].dtype]))
    assert card["parity"]["labels"]["unpurified"]["n"] >= 100
