"""The command `bring` as its users run it: the shipped purifier, a folder of pictures, their own size."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import Tensor, nn

import metastable
from export import bring_command
from metastable import bundle, console
from metastable.evaluation import budget, kept

pytestmark = pytest.mark.slow

NAMES = ["red", "green", "blue"]
HEIGHT, WIDTH = 24, 40


class Reddest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 30 * x.mean((2, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph for images of 24 x 40, by the older exporter, which needs no second to import."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Reddest().eval(), (torch.rand(2, 3, HEIGHT, WIDTH),), path, dynamo=False, input_names=["x"],
            output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}, opset_version=18,
        )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures, wider than the classifier's images, in one of three colours, and their labels."""
    folder = tmp_path_factory.mktemp("photos")
    rng, lines = np.random.default_rng(0), ["file,label"]
    for number in range(60):
        pixels = rng.integers(60, 90, (48, 120, 3), dtype=np.uint8)
        pixels[..., number % 3] += np.uint8(60)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{NAMES[number % 3]}")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "labels.csv").write_text("\n".join([*lines, ""]))
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SIGMAS", (0.05,))
    monkeypatch.setattr(budget, "CHAINS", (1, 2))
    monkeypatch.setattr(kept, "STEPS", 2)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, object], str]:
    """The line of JSON, and what was printed before it."""
    console.main(bring_command.fill, "bring", [*map(str, arguments)])
    *before, line = capsys.readouterr().out.splitlines()
    return json.loads(line), "\n".join(before)


def test_from_a_graph_and_a_folder_to_answers(
    model: Path, photos: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [model, "--images", photos, "--labels", photos / "labels.csv", "--classes", photos / "names.txt"]
    short = ["--mean", "0,0,0", "--std", "1,1,1", "--n", 6, "--judge-n", 8, "--fit", "crop"]
    found, said = run(capsys, *given, *short, "--out", tmp_path / "mine")
    assert found["shape"] == [3, HEIGHT, WIDTH]
    assert found["fit"] == {"mode": "crop", "share": 1.0, "interpolation": "bicubic"}
    assert "3 classes, images of 3 x 24 x 40" in said
    assert "report.md" in said
    judged = found["judged"]
    assert isinstance(judged, dict)
    assert (judged["n"], judged["labels"]) == (8, "given")
    by_setting = {row["setting"]: row for row in judged["rows"]}
    assert list(by_setting) == ["none", "jpeg75", "jpeg50", "fast", "balanced"]
    assert by_setting["balanced"]["kept"]["clean"][0] == 1.0
    assert list(by_setting["balanced"]["kept"]) == ["clean", "2/255", "4/255", "8/255"]
    made = bundle.load(tmp_path / "mine")
    assert (made.shape, made.fit.mode, made.classes) == ((3, HEIGHT, WIDTH), "crop", NAMES)
    assert set(made.shifts) == {"fast", "balanced"}
    with metastable.load(tmp_path / "mine") as defense:
        for verdict in defense([photos / "0.png", photos / "1.png"], setting="fast"):
            assert verdict.class_name in ("red", "green")


def test_hardened_for_seconds_it_has_a_purifier_of_its_own(
    model: Path, photos: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody labelled these: it is trained towards the classifier's own answers."""
    for name in ("mine-before", "mine-hardened"):  # of somebody else
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").write_text("{}")
    short = [*MEAN, "--n", 4, "--judge-n", 4, "--harden", "0.05", "--fit", "crop"]
    for _ in range(2):  # the same again goes on from the run that there is
        found, _ = run(capsys, model, "--images", photos, *short, "--out", tmp_path / "mine")
    tuned = found["tuned"]
    assert isinstance(tuned, dict)
    assert tuned["hardened"]["updates"] >= 1
    assert {"robust_before", "robust_kept", "checked"} <= tuned["hardened"].keys()
    report = (tmp_path / "mine" / "report" / "report.md").read_text()
    assert re.search(r"a short attack on the whole defense left \d+% of \d+ held-out pictures before", report)
    assert [one.name for one in (tmp_path / "mine-hardened").iterdir()] == ["bundle.json"]
    [kept] = tmp_path.glob("mine-before-*")
    made, before = bundle.load(tmp_path / "mine"), bundle.load(kept)
    assert made.fit == before.fit
    assert made.fit.mode == "crop"
    assert made.provenance.checks == before.provenance.checks
    assert made.parts["classifier"] == before.parts["classifier"]
    assert made.parts["score"] == before.parts["score"]  # the detector stays
    assert made.settings["balanced"].network == "purifier"
    assert set(made.shifts) == {"fast", "balanced"}
    assert not torch.equal(
        made.networks["purifier"].score(torch.rand(1, 3, 24, 40)),  # type: ignore[operator]
        made.networks["score"].score(torch.rand(1, 3, 24, 40)),  # type: ignore[operator]
    )


def test_too_few_pictures_are_refused_before_anything_is_measured(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in range(5):
        (few / f"{number}.png").write_bytes((photos / f"{number}.png").read_bytes())
    arguments = [model, "--images", few, "--mean", "0,0,0", "--std", "1,1,1", "--out", tmp_path / "mine"]
    with pytest.raises(SystemExit) as stop:
        run(capsys, *arguments)
    assert stop.value.code == 2
    assert "few has 4 pictures to calibrate on" in capsys.readouterr().err


def test_a_module_becomes_a_defense_in_python(photos: Path, quick: None, tmp_path: Path) -> None:
    module = Reddest()
    with metastable.bring(
        module,
        shape=(3, 20, 28),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        images=photos,
        labels=photos / "labels.csv",
        classes=photos / "names.txt",
        out=tmp_path / "mine",
        budget_ms=1000,
    ) as defense:
        assert module.training  # it is not changed
        assert defense.bundle.shape == (3, 20, 28)
        assert defense([photos / "2.png"])[0].class_name == "blue"
    assert (tmp_path / "mine/report/report.md").is_file()


MEAN = ["--mean", "0,0,0", "--std", "1,1,1"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        run(capsys, *arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    return said.splitlines()[-1]


def test_what_lies_in_the_folder_to_write_is_left_as_it_is(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("notes.txt", "model.onnx"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(model.read_bytes())
        assert "is not empty" in refused(
            capsys, folder / name if name == "model.onnx" else model, *MEAN, "--out", folder
        )
        assert [one.name for one in folder.iterdir()] == [name]
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(capsys, model, *MEAN, "--out", tmp_path / "file")
    run(capsys, model, *MEAN, "--out", tmp_path / "made")
    (tmp_path / "made" / "bundle.json").unlink()  # as if it had been cut off
    run(capsys, model, *MEAN, "--out", tmp_path / "made")  # the same again
    bundle.load(tmp_path / "made")
    assert "is not empty" in refused(capsys, model, *MEAN, "--fit", "crop", "--out", tmp_path / "made")
    other = tmp_path / "other.onnx"
    other.write_bytes(model.read_bytes() + b"\x1a\x00")  # an empty producer's version is another file
    assert "is not empty" in refused(capsys, other, *MEAN, "--out", tmp_path / "made")


def test_pictures_are_counted_and_told_apart_before_and_after(
    model: Path, photos: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "mine"]
    mixed = ["--images", photos, "--labels", photos / "labels.csv", "--judge-images", photos]
    assert "labels of both" in refused(capsys, model, *MEAN, *mixed, *out)
    assert not (tmp_path / "mine").exists()
    same = ["--images", photos, "--judge-images", photos]
    assert "no picture is left to judge on" in refused(capsys, model, *MEAN, *same, *out)


def test_what_a_link_leads_to_is_brought_and_numbers_are_in_the_range_of_the_graph(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link.onnx").symlink_to(model)
    given = ["--range", "0,255", "--mean", "51,0,0", "--std", "255,1,1"]
    run(capsys, tmp_path / "link.onnx", *given, "--order", "rgb", "--out", tmp_path / "mine")
    part = json.loads((tmp_path / "mine/bundle.json").read_text())["parts"]["classifier"]
    assert part["mean"] == pytest.approx([0.2, 0, 0])
    assert part["std"] == pytest.approx([1, 1 / 255, 1 / 255])
    command = json.loads((tmp_path / "mine/bundle.json").read_text())["provenance"]["command"]
    assert "--range 0,255" in command
    assert "--order rgb" in command


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--mean", "nan,0,0"], "no list of numbers"),
        (["--size", "24y40"], "no height and width"),
        (["--range", "255,0"], "no range"),
        (["--eps", "0", "--images", "x"], "no radius"),
        (["--eps", "8", "--images", "x"], "no radius"),
        (["--keep", "2", "--images", "x"], "no share"),
        (["--budget-ms", "0", "--images", "x"], "no number above 0"),
        (["--fit-share", "0.5"], "without --fit"),
        (["--judge-n", "5"], "without --images"),
    ],
)
def test_numbers_that_cannot_be(
    given: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, model, *given, "--out", tmp_path / "mine")


def test_weights_in_a_file_beside_make_another_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The graph's own bytes are the same."""
    place = tmp_path / "model.onnx"
    weights = np.eye(3, dtype=np.float32)
    held = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], weights.tobytes(), raw=True)
    shape = ["n", 3, HEIGHT, WIDTH]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("x", shape), ("y", ["n", 3]))
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [held])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(proto, place, save_as_external_data=True, location="w.data", size_threshold=0)
    run(capsys, place, *MEAN, "--out", tmp_path / "mine")
    before = (tmp_path / "mine/classifier.onnx").read_bytes()
    (tmp_path / "w.data").write_bytes((2 * weights).tobytes())
    assert "of another classifier" in refused(capsys, place, *MEAN, "--out", tmp_path / "mine")
    assert (tmp_path / "mine/classifier.onnx").read_bytes() == before
