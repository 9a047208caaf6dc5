import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from export.adapt import adapt, reading
from metastable.bundle import files
from metastable.errors import BundleError
from tests.export.adapt.graphs import WEIGHTS, adapted, classifier, expected, logits, node, noise, said, save


def zipped(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    data = io.BytesIO()
    write(data)
    return data.getvalue()


OTHERS: dict[str, tuple[bytes, str]] = {
    "weights.pt": (
        saved(lambda file: torch.save(nn.Linear(2, 2).state_dict(), file)),
        r"saved by torch\.save, a pickle.*torch\.onnx\.export",
    ),
    "old.pt": (
        saved(lambda file: torch.save({"w": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)),
        r"a pickle.*torch\.onnx\.export",
    ),
    "script.pt": (zipped("m/code/__torch__.py", "m/constants.pkl"), "a TorchScript archive.*onnx.export"),
    "program.pt2": (zipped("p/archive_format", "p/models/model.json"), r"program of torch\.export"),
    "model.keras": (zipped("metadata.json", "model.weights.h5"), "a Keras model.*format='onnx'"),
    "model.mar": (zipped("MAR-INF/MANIFEST.json"), "TorchServe"),
    "some.zip": (zipped("readme.txt"), "a zip archive: unpack"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(50), "a TFLite model.*tf2onnx.convert --tflite"),
    "model.ort": (b"\x1c\0\0\0ORTM" + bytes(50), "own format.*the .onnx file"),
    "saved_model.pb": (b"\x08\x01\x12\x80\x01" + b"saver tensorflow" * 4, "SavedModel.*tf2onnx"),
    "pointer.onnx": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "model.tar": (bytes(257) + b"ustar" + bytes(250), "a tar archive"),
    "model.onnx.gz": (b"\x1f\x8b\x08" + bytes(20), "gzip"),
    "page.onnx": (b"<!DOCTYPE html>", "a web page"),
    "model.xml": (b"<?xml version='1.0'?><net/>", "OpenVINO"),
    "empty.onnx": (b"", "not an ONNX graph"),
    "noise.onnx": (b"\x08\x0a" * 50, "not an ONNX graph"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_recognised(name: str, tmp_path: Path) -> None:
    data, message = OTHERS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"^{name} is .*{message}"):
        adapt(tmp_path / name)


def test_safetensors_and_folders_are_recognised(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(BundleError, match="a safetensors file, which holds weights and no network"):
        adapt(tmp_path / "model.safetensors")
    with pytest.raises(BundleError, match="a folder: name the"):
        adapt(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"SavedModel.*--saved-model"):
        adapt(tmp_path)
    with pytest.raises(BundleError, match=r"absent\.onnx is missing"):
        adapt(tmp_path / "absent.onnx")


def outside(
    folder: Path, *, location: str = "model.onnx.data", offset: str = "16", length: str | None = "120"
) -> Path:
    """A classifier whose weights [3, 10] lie in another file, after 16 bytes."""
    model = classifier()
    (tensor,) = (one for one in model.graph.initializer if one.name == "weights")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": length}
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return save(model, folder)


@pytest.mark.parametrize("length", ["120", None])
def test_weights_beside_the_file_are_read(length: str | None, tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(bytes(16) + WEIGHTS.tobytes())
    found = adapt(outside(tmp_path, length=length))
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)
    assert "other files beside it" in said(found)


@pytest.mark.parametrize(
    "location", ["../model.onnx.data", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b"]
)
def test_no_path_leads_out_of_the_folder(location: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    for folder in (tmp_path, inner):
        (folder / "model.onnx.data").write_bytes(bytes(16) + WEIGHTS.tobytes())
    with pytest.raises(BundleError, match=r"only plain names in its own folder"):
        adapt(outside(inner, location=location))


def test_links_and_missing_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(bytes(16) + WEIGHTS.tobytes())
    (tmp_path / "model.onnx.data").symlink_to("target")
    with pytest.raises(BundleError, match=r"model\.onnx\.data is a link"):
        adapt(outside(tmp_path))
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx\.data is missing"):
        adapt(outside(tmp_path))


@pytest.mark.parametrize(
    ("offset", "length", "message"),
    [
        ("20", "120", "does not have: copy it whole"),
        ("16", "119", "onnx.checker"),
        ("-1", "120", "no whole number"),
        ("1e3", "120", "no whole number"),
        ("9" * 40, "120", "no whole number"),
        ("999999999999", None, "does not have"),
        ("16", "999999999999999", "does not have"),
    ],
)
def test_offsets_are_checked(offset: str, length: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(bytes(16) + WEIGHTS.tobytes())
    with pytest.raises(BundleError, match=message):
        adapt(outside(tmp_path, offset=offset, length=length))


def test_a_link_that_is_named_is_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(classifier().SerializeToString())
    (tmp_path / "linked.onnx").symlink_to("blob")
    assert adapt(tmp_path / "linked.onnx").classes == 10


def test_bytes_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx.data").write_bytes(bytes(16) + WEIGHTS.tobytes())
    path = outside(tmp_path)
    monkeypatch.setattr(files, "PART_BYTES", path.stat().st_size + 119)
    with pytest.raises(BundleError, match=r"model\.onnx\.data is missing, .* above 119 bytes"):
        adapt(path)
    monkeypatch.setattr(files, "PART_BYTES", path.stat().st_size - 1)
    with pytest.raises(BundleError, match=r"model\.onnx is missing, .* above"):
        adapt(path)


def test_bytes_that_many_tensors_share_are_bounded_as_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx.data").write_bytes(bytes(16) + WEIGHTS.tobytes())
    model = onnx.load(outside(tmp_path), load_external_data=False)
    (tensor,) = (one for one in model.graph.initializer if one.name == "weights")
    for index in range(100):
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name = f"copy{index}"
    path = save(model, tmp_path)
    monkeypatch.setattr(files, "PART_BYTES", path.stat().st_size + 200)
    assert 100 * WEIGHTS.nbytes > files.PART_BYTES
    with pytest.raises(BundleError, match=r"its weights are above \d+ bytes"):
        adapt(path)


@pytest.mark.parametrize("version", [3, 14, 2**40])
def test_a_version_that_no_runtime_knows_is_written_as_one_that_all_know(
    version: int, tmp_path: Path
) -> None:
    model = classifier()
    model.ir_version = version
    found = adapt(save(model, tmp_path))
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)


def test_bytes_alone_have_no_file_beside_them(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="in another file"):
        adapt(outside(tmp_path).read_bytes())


def with_functions(levels: int, *, circle: bool = False) -> onnx.ModelProto:
    """Each of `levels` functions calls the next one twice."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = classifier(node("f0", "z", "y", domain="own"), domains=[("own", 1)])
    for level in range(levels):
        last = level == levels - 1
        callee = "f0" if circle else "Identity"
        name, domain = (callee, "own" if circle else "") if last else (f"f{level + 1}", "own")
        body = [node(name, "a", "b", domain=domain), node(name, "b", "c", domain=domain)]
        model.functions.append(helper.make_function("own", f"f{level}", ["a"], ["c"], body, imports))
    return model


def test_functions_are_written_out() -> None:
    found = adapted(with_functions(3))
    x = noise(found)
    assert_allclose(logits(found, x), expected(x), rtol=1e-5, atol=1e-5)


def test_functions_that_grow_or_turn_in_circles_are_refused_before_they_are_written_out() -> None:
    with pytest.raises(BundleError, match="once its functions are written out"):
        adapted(with_functions(60))
    with pytest.raises(BundleError, match="in circles"):
        adapted(with_functions(3, circle=True))


def test_too_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "NODES", 2)
    with pytest.raises(BundleError, match="more than 2 nodes"):
        adapted(classifier())


def test_branches_are_refused_with_the_option_that_avoids_them() -> None:
    made = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    branch = helper.make_graph([node("Identity", "z", "b")], "b", [], made)
    model = classifier(node("If", "yes", "y", then_branch=branch, else_branch=branch), held={"yes": np.True_})
    with pytest.raises(BundleError, match=r"If holds a graph.*torch\.jit\.script.*dynamo=True"):
        adapted(model)


def test_bfloat16_weights_are_a_sentence() -> None:
    weights = helper.make_tensor("w16", TensorProto.BFLOAT16, [3, 1, 1], [1.0, 2.0, 3.0])
    front = [
        node("Cast", "x", "h", to=TensorProto.BFLOAT16),
        node("Mul", "h w16", "t"),
        node("Cast", "t", "p", to=1),
    ]
    model = classifier(front=front, pixels="p")
    model.graph.initializer.append(weights)
    with pytest.raises(BundleError, match=r"bfloat16 weights.*float32"):
        adapted(model)


def test_names_in_messages_are_cleaned() -> None:
    assert reading.shown("a\nb\x1b" + "c" * 200) == "'a?b?" + "c" * 73 + "...'"
