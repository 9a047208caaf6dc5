import csv
import dataclasses
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from export import __main__ as command
from export import bring, mar
from export.adapt import Wishes
from export.tidy import encode, tidy
from metastable import bundle
from metastable.datasets import Folder
from metastable.engine.runners.onnx_runner import OnnxRunner
from metastable.errors import BundleError, DataError
from metastable.networks.classifier import WhitenedNet, WideResNet
from metastable.networks.onnx_classifier import OnnxClassifier

NAMES = ["red", "green", "blue"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


class Reddest(nn.Module):
    """Logits of three classes: how red, green and blue an image is."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x.mean((2, 3))


class Tail(nn.Module):
    def __init__(self, tail: Any) -> None:
        super().__init__()
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(x.mean((2, 3)))
        return out


def exported(module: nn.Module, path: Path, size: int = 32) -> Path:
    """An ONNX graph by the older exporter, which needs no second to import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        torch.onnx.export(
            module.eval(), (torch.rand(2, 3, size, size),), path, dynamo=False, input_names=["x"],
            output_names=["y"], dynamic_axes=axes, opset_version=18,
        )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(Reddest(), tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def newcomer(file: Path, names: Path, **changes: Any) -> bring.Newcomer:
    """As the owner declares it; fields of `Wishes` among the changes go there."""
    wished = {key: changes.pop(key) for key in ("size", "order", "range", "output") if key in changes}
    fields = {"mean": MEAN, "std": STD, "wishes": Wishes(**wished)}
    return bring.Newcomer(file=file, classes=names, **{**fields, **changes})


def test_a_graph_behind_the_networks_of_the_base(
    graph: Path, names: Path, tiny_folder: Path, tiny: bundle.Bundle, tmp_path: Path
) -> None:
    found = bring.bring(newcomer(graph, names), tiny_folder, tmp_path / "out", name="mine")
    assert (found["classifier"], found["classes"], found["resized"]) == ("onnx", 3, False)
    assert found["gradients"] == "by conversion to PyTorch, which agrees with ONNX Runtime"
    made = bundle.load(tmp_path / "out")
    assert (made.name, made.classes, made.anomaly) == ("mine", NAMES, tiny.anomaly)
    assert made.settings == tiny.settings
    for part in ("score.safetensors", "energy.safetensors", "settings.yaml"):
        assert (tmp_path / "out" / part).read_bytes() == (tiny_folder / part).read_bytes()
    x = torch.rand(4, 3, 32, 32)
    expected = 3 * (x.mean((2, 3)) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(made.classifier(x), expected)
    assert made.provenance.inputs["base"] == tiny.digest
    assert made.provenance.command == (
        "metastable bring model.onnx --classes names.txt --mean 0.5,0.4,0.3 --std 0.2,0.25,0.5"
    )
    bring.bring(newcomer(graph, names), tiny_folder, tmp_path / "again", name="mine")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_damaged_graph_of_a_bundle_is_refused(
    graph: Path, names: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    bring.bring(newcomer(graph, names), tiny_folder, tmp_path / "out", name="mine")
    path = tmp_path / "out" / "classifier.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"classifier\.onnx does not match its SHA-256"):
        bundle.load(tmp_path / "out")


def test_another_size_is_resized_and_recorded(names: Path, tiny_folder: Path, tmp_path: Path) -> None:
    graph = exported(Reddest(), tmp_path / "small.onnx", size=16)
    found = bring.bring(newcomer(graph, names), tiny_folder, tmp_path / "out", name="mine")
    assert found["resized"] is True
    part = json.loads((tmp_path / "out" / "bundle.json").read_text())["parts"]["classifier"]
    assert (part["size"], part["resize"]) == ([16, 16], "bilinear, antialiased")
    classifier = bundle.load(tmp_path / "out").classifier
    assert isinstance(classifier, OnnxClassifier)
    assert classifier.size == (16, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "made"),
    [
        ("wrn-10-1", WideResNet(depth=10, width=1, classes=3)),
        ("whitened", WhitenedNet(classes=3)),
    ],
)
def test_a_state_dict_for_a_network_of_ours(
    network: str, made: nn.Module, names: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    state = {k: v.contiguous() for k, v in made.state_dict().items() if not k.startswith("normalize.")}
    save_file(state, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    given = newcomer(tmp_path / "weights.safetensors", names, network=network)
    found = bring.bring(given, tiny_folder, tmp_path / "out", name="mine")
    assert found["classifier"] == "network"
    classifier = bundle.load(tmp_path / "out").classifier
    normalize: Any = classifier.normalize
    assert torch.equal(normalize.mean.flatten(), torch.tensor(MEAN))
    for key, value in state.items():
        assert torch.equal(classifier.state_dict()[key], value)  # not rounded to float16
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    torch.autograd.grad(classifier(x).sum(), x)
    save_file(state | {"normalize.mean": torch.zeros(1, 3, 1, 1)}, tmp_path / "weights.safetensors")
    with pytest.raises(BundleError, match=r"normalize\.mean is not the one that is declared"):
        bring.bring(given, tiny_folder, tmp_path / "out", name="mine")


class Batchy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        return means - means.mean(0)


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (Tail(lambda h: h[:, :2]), {}, "names 3 classes, and the network has 2"),
        (Tail(lambda h: (h - 100).log()), {}, "not finite"),
        (Tail(lambda h: 0 * h), {}, "same logits"),
        (Batchy(), {}, "depends on the other images|differently"),
        (Reddest(), {"size": (16, 16)}, "32 x 32"),
        (Reddest(), {"mean": (0.5,)}, "need 3 numbers"),
        (Reddest(), {"std": (0.2, 0.0, 0.2)}, "std above 0"),
        (Reddest(), {"std": None}, "belong together"),
        (Reddest(), {"mean": None, "std": None}, "is not known: give --mean and --std"),
    ],
)
def test_classifiers_that_are_refused(
    module: nn.Module, changes: dict[str, Any], message: str, names: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    graph = exported(module, tmp_path / "model.onnx")
    with pytest.raises((BundleError, DataError), match=message):
        bring.bring(newcomer(graph, names, **changes), tiny_folder, tmp_path / "out", name="mine")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet"}, "there is no network"),
        ({"network": "wrn-28-10", "size": (64, 64)}, "bring an ONNX graph"),
        ({"mean": None}, "needs --mean and --std"),
        ({"classes": None}, "needs --classes"),
    ],
)
def test_weights_of_which_too_little_is_said(
    changes: dict[str, Any], message: str, names: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    given = newcomer(tmp_path / "weights.safetensors", names)
    size = changes.pop("size", None)
    given = dataclasses.replace(given, wishes=Wishes(size=size), **changes)
    with pytest.raises(BundleError, match=message):
        bring.bring(given, tiny_folder, tmp_path / "out", name="mine")


def test_dropout_left_on_is_found(names: Path, tiny_folder: Path, tmp_path: Path) -> None:
    proto = onnx.load(exported(Reddest(), tmp_path / "model.onnx"))
    last = proto.graph.node[-1]
    last.output[0] = "before"
    constants = [helper.make_node("Constant", [], ["half"], value_float=0.5)]
    true = helper.make_tensor("true", onnx.TensorProto.BOOL, [], [True])
    constants.append(helper.make_node("Constant", [], ["on"], value=true))
    proto.graph.node.extend([*constants, helper.make_node("Dropout", ["before", "half", "on"], ["y"])])
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="training mode"):
        bring.bring(newcomer(tmp_path / "model.onnx", names), tiny_folder, tmp_path / "out", name="mine")


def test_functions_are_inlined_and_traces_of_the_machine_taken_out(graph: Path) -> None:
    proto = onnx.load(graph)
    plain = [helper.make_node("Identity", ["a"], ["b"])]
    proto.functions.append(
        helper.make_function("own", "f", ["a"], ["b"], plain, [helper.make_opsetid("", 18)])
    )
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(helper.make_node("f", ["z"], ["y"], domain="own", doc_string="a secret place"))
    proto.doc_string = "a secret place"
    tidied = encode(tidy(proto))
    assert b"secret" not in tidied
    network = OnnxClassifier(tidied, size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(x), 3 * x.mean((2, 3)))


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Path]:
    """Six images, one of them with the wrong label."""
    folder = tmp_path / "images"
    folder.mkdir()
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        for i in range(6):
            pixels = np.zeros((40, 40, 3), np.uint8)
            pixels[..., i % 3] = 200
            Image.fromarray(pixels).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", (i + 1) % 3 if i == 5 else NAMES[i % 3]])
    return folder, tmp_path / "labels.csv"


def pictures(labelled: tuple[Path, Path], **changes: Any) -> Folder:
    given = Folder(path=labelled[0], shape=(3, 1, 1), labels=labelled[1], test_share=0)
    return dataclasses.replace(given, **changes)


def test_what_it_says_of_pictures(
    graph: Path, names: Path, labelled: tuple[Path, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    given = newcomer(graph, names)
    found = bring.bring(given, tiny_folder, tmp_path / "out", name="mine", pictures=pictures(labelled))
    looked = found["looked"]
    assert (looked["n"], looked["accuracy"]) == (6, 0.8333)
    assert looked["low"] < 0.8333 < looked["high"]
    bare = pictures(labelled, labels=None)
    looked = bring.bring(given, tiny_folder, tmp_path / "out", name="mine", pictures=bare)["looked"]
    assert (looked["most_frequent"], looked["warning"]) == (0.3333, None)
    assert 1 / 3 < looked["median_probability"] < 1


def test_order_and_normalization_are_tried_on_labelled_pictures(
    names: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """A network that sees blue, green and red in values of 0 to 255: of RGB in [0, 1] it would be wrong."""

    class Bytes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            means = x.mean((2, 3)).flip(1)
            return torch.cat([means[:, :2], 1.2 * means[:, 2:] - 30], 1) / 50

    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    lines = ["file,label"]
    for i in range(60):
        pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        pixels[..., i % 3] += np.uint8(100)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        lines.append(f"{i}.png,{NAMES[i % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    graph = exported(Bytes(), tmp_path / "model.onnx")
    given = newcomer(graph, names, mean=None, std=None)
    some = pictures((tmp_path / "images", tmp_path / "labels.csv"))
    found = bring.bring(given, tiny_folder, tmp_path / "out", name="mine", pictures=some)
    assert found["looked"]["accuracy"] == 1.0
    assert any("BGR" in change and "0 to 255" in change for change in found["changes"]), found["changes"]
    recorded = bundle.load(tmp_path / "out").provenance.checks
    assert set(found["changes"]) <= set(recorded)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["x", *map(str, arguments)])
    command.main()


@pytest.mark.slow
def test_the_command_line_without_pictures(
    graph: Path, names: Path, tiny_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shared = ["--classes", names, "--mean", "0,0,0", "--std", "1,1,1", "--base", tiny_folder]
    out = ["--out", tmp_path / "mine"]
    run(monkeypatch, "bring", graph, *shared, *out)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["shape"], found["looked"]) == ([3, 32, 32], None)
    assert bundle.load(tmp_path / "mine").name == "mine"
    settings = tmp_path / "settings.yaml"
    settings.write_text((tiny_folder / "settings.yaml").read_text().replace("default: fast", "default: none"))
    run(monkeypatch, "settings", "--bundle", tmp_path / "mine", "--settings", settings)
    assert bundle.load(tmp_path / "mine").settings.default == "none"
    out = ["--out", tmp_path / "another"]
    capsys.readouterr()
    for arguments, message in (
        ([graph, *shared, *out, "--serve"], "--serve says nothing without --images"),
        ([graph, *shared, *out, "--images", tmp_path / "nowhere"], "nowhere is no folder"),
        ([tmp_path / "absent.onnx", *shared, *out], "absent.onnx"),
        ([names, *shared, *out], "names.txt"),
        ([graph, *shared, "--out", tiny_folder], "folder of its own"),
        ([graph, *shared[2:], "--classes", tmp_path / "no.txt", *out], "class names cannot be read"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, "bring", *arguments)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1, error


@pytest.mark.slow
def test_an_archive_holds_the_graph_and_no_extra_files(
    graph: Path, names: Path, tiny_folder: Path, tmp_path: Path, root: Path
) -> None:
    bring.bring(newcomer(graph, names), tiny_folder, tmp_path / "out", name="mine")
    (tmp_path / "out" / "link").symlink_to("/etc/hostname")
    mar.build(tmp_path / "out", root / "model-config.yaml", tmp_path / "metastable.mar")
    with zipfile.ZipFile(tmp_path / "metastable.mar") as packed:
        held = {Path(name).name for name in packed.namelist() if name.startswith("bundle/")}
        whole = packed.read(f"{bundle.ARTIFACTS_FOLDER}/onnx/classifier.onnx")
    assert held - {""} == {*bundle.file_names(tmp_path / "out")}
    x = torch.rand(3, 3, 32, 32)
    found = OnnxRunner({"classifier": whole}).classify(x)
    torch.testing.assert_close(found, bundle.load(tmp_path / "out").classifier(x))
