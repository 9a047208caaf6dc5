import hashlib
import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from metastable import anomaly, bundle
from metastable.bundle import architectures, files
from metastable.errors import BundleError
from tests.conftest import write_tiny


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_folder, tmp_path / "b")
    return tmp_path / "b"


def change(folder: Path, **values: Any) -> None:
    """Other values in bundle.json, with the digest that makes it whole again."""
    path = folder / "bundle.json"
    raw = {**json.loads(path.read_text()), **values}
    del raw["manifest_sha256"]
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    raw["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(raw))


def test_round_trip(tiny: bundle.Bundle) -> None:
    assert (tiny.name, tiny.version, tiny.shape) == ("tiny", "1.2", (3, 32, 32))
    assert set(tiny.scores) == {"score", "energy"}
    x = torch.rand(2, 3, 32, 32)
    assert tiny.classifier(x).shape == (2, 10)
    assert tiny.scores["energy"](x).shape == x.shape
    assert not any(p.requires_grad for p in tiny.classifier.parameters())
    assert all(p.dtype == torch.float32 for p in tiny.classifier.parameters())


PART = {
    "kind": "network",
    "architecture": "ScoreNetwork",
    "arguments": {"widths": [4, 8, 8]},
    "sha256": "0" * 64,
}
ONNX = {"kind": "onnx", "size": 32, "mean": [0.5] * 3, "std": [0.2] * 3, "resize": None, "sha256": "0" * 64}
FIT = {"mode": "crop", "share": 0.875, "interpolation": "bilinear"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 1}, "schema"),
        ({"schema": True}, "schema"),
        ({"extra": 1}, "keys"),
        ({"classes": ["one"]}, "classes must be a list of 2"),
        ({"classes": ["one", "one"]}, "classes must be all different"),
        ({"classes": ["one", 2]}, r"classes\[1\] must be printable"),
        ({"name": "../x"}, "name must be"),
        ({"version": "--handler"}, "version must be"),
        ({"shape": [3, 32]}, "shape must be a list of 3"),
        ({"shape": [3, 32, 1025]}, r"shape\[2\] must be a whole number from 1 to 1024"),
        ({"shape": [4, 32, 32]}, "shape must be .1 or 3, height, width."),
        ({"fit": "crop"}, "fit must be a mapping"),
        ({"fit": FIT | {"mode": "pad"}}, "fit.mode must be one of stretch, crop"),
        ({"fit": FIT | {"share": 0}}, "fit.share must be a number from 0.1 to 1"),
        ({"fit": FIT | {"interpolation": 3}}, "fit.interpolation must be one of nearest, bilinear"),
        ({"classes": ["one", "t" * 201]}, r"classes\[1\] must be printable text of 1 to 200"),
        ({"shape": [3, 8, 8]}, "does not take images|must make finite"),
        ({"range": [-1.0, 1.0]}, "range and conventions"),
        ({"conventions": {}}, "range and conventions"),
        ({"parts": {}}, "parts must be a mapping with classifier"),
        ({"parts": {"classifier": PART, "../score": PART}}, "parts must be"),
        (
            {"parts": {"classifier": PART | {"architecture": "os.system"}}},
            "classifier.architecture must be one",
        ),
        ({"parts": {"classifier": PART | {"file": "/etc/passwd"}}}, "parts.classifier must be"),
        ({"parts": {"classifier": PART, "score": ONNX}}, "parts.score.kind"),
        ({"parts": {"classifier": ONNX | {"resize": "nearest"}}}, "parts.classifier.resize"),
        ({"parts": {"classifier": ONNX | {"size": [32, 30]}}}, "parts.classifier.resize"),
        ({"parts": {"classifier": ONNX | {"size": [32]}}}, "parts.classifier.size must be a list of 2"),
        ({"parts": {"classifier": ONNX | {"std": [0.2, 0.0, 0.2]}}}, r"parts.classifier.std\[1\]"),
        ({"parts": {"classifier": ONNX | {"mean": [0.5]}}}, "parts.classifier.mean must be a list of 3"),
        ({"anomaly": {"threshold": 1}}, "anomaly must be"),
        ({"provenance": None}, "provenance must be"),
        ({"settings_sha256": "0"}, "settings_sha256"),
    ],
)
def test_a_wrong_manifest_is_refused(copy: Path, values: dict[str, Any], message: str) -> None:
    change(copy, **values)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


def test_a_manifest_edited_by_hand_is_refused(copy: Path) -> None:
    path = copy / "bundle.json"
    path.write_text(path.read_text().replace('"tiny"', '"tony"'))
    with pytest.raises(BundleError, match="edited by hand"):
        bundle.load(copy)


def replace_part(folder: Path, data: bytes, **fields: Any) -> None:
    """Swap the score part for other bytes, with a matching digest: what a hostile author can do."""
    (folder / "score.safetensors").write_bytes(data)
    parts = json.loads((folder / "bundle.json").read_text())["parts"]
    parts["score"] |= {"sha256": hashlib.sha256(data).hexdigest(), **fields}
    change(folder, parts=parts)


def test_hostile_parts_are_refused(copy: Path) -> None:
    good = (copy / "score.safetensors").read_bytes()
    cases: list[tuple[bytes, dict[str, Any], str]] = [
        (good, {"architecture": "eval"}, "score.architecture must be one of"),
        (
            good,
            {"arguments": {"widths": [10**6, 10**6, 10**6]}},
            r"score.arguments.widths must be a list|whole number",
        ),
        (good, {"arguments": {"widths": [4096, 4096, 4096]}}, "do not fit"),
        (good, {"arguments": {"blocks": 10**9}}, "score.arguments.blocks must be"),
        (good, {"arguments": {"nonsense": 1}}, "score.arguments must be a mapping with keys among"),
        (
            good,
            {"architecture": "EnergyNetwork", "arguments": {}},
            "score.safetensors: the weights do not fit",
        ),
        (b"\x80\x04pickle", {}, "not a safetensors file"),
        (save({"head.weight": torch.zeros(1)}), {}, "do not fit"),
        (save({k: v.long() for k, v in load_tensors(good).items()}), {}, "another kind of number"),
    ]
    for data, fields, message in cases:
        replace_part(
            copy, data, **{"architecture": "ScoreNetwork", "arguments": {"widths": [4, 8, 8]}} | fields
        )
        with pytest.raises(BundleError, match=message):
            bundle.load(copy)


def test_every_argument_of_every_architecture_is_bounded() -> None:
    for name, network in architectures.ARCHITECTURES.items():
        assert set(inspect.signature(network).parameters) == set(architectures.ARGUMENTS[name])


def test_weights_that_are_no_numbers_are_refused(copy: Path, tiny: bundle.Bundle) -> None:
    tensors = load_tensors((copy / "score.safetensors").read_bytes())
    tensors["head.bias"][0] = torch.nan
    replace_part(copy, save(tensors))
    with pytest.raises(BundleError, match="finite"):
        bundle.load(copy)


def test_missing_linked_and_strange_files_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = copy / "score.safetensors"
    part.rename(copy / "elsewhere")
    with pytest.raises(BundleError, match=r"score\.safetensors is missing"):
        bundle.load(copy)
    part.symlink_to(copy / "elsewhere")
    with pytest.raises(BundleError, match=r"score\.safetensors is missing from bundle b, or a link"):
        bundle.load(copy)
    part.unlink()
    os.mkfifo(part)  # reading it would wait for ever
    with pytest.raises(BundleError, match=r"score\.safetensors of bundle b is no file"):
        bundle.load(copy)
    part.unlink()
    part.mkdir()
    with pytest.raises(BundleError, match=r"score\.safetensors"):
        bundle.load(copy)
    monkeypatch.setattr(files, "PART_BYTES", 100)
    with pytest.raises(BundleError, match=r"classifier\.safetensors of bundle b is no file, or above 100"):
        bundle.load(copy)


def test_settings_must_find_their_networks(copy: Path) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    del manifest["parts"]["energy"]
    change(copy, parts=manifest["parts"])
    with pytest.raises(BundleError, match="energy"):
        bundle.load(copy)


def test_a_new_calibration_changes_the_digest(copy: Path) -> None:
    before = bundle.load(copy)
    found = anomaly.calibrate(torch.rand(99), false_positive_rate=0.1, network="score", data={"name": "n"})
    bundle.set_anomaly(copy, found)
    after = bundle.load(copy)
    assert after.anomaly == found
    assert after.digest != before.digest


CHANGED = {"clean": 60, "jpeg75": 39}


def test_the_changes_of_a_calibration_are_kept_and_a_calibration_without_any_reads_as_before(
    copy: Path,
) -> None:
    def calibrated(changes: dict[str, int]) -> anomaly.Calibration:
        shared: dict[str, Any] = {"false_positive_rate": 0.1, "network": "score", "data": {}}
        return anomaly.calibrate(torch.rand(99), changes=changes, **shared)

    before = set(json.loads((copy / "bundle.json").read_text())["anomaly"])
    for changes, names in ((CHANGED, before | {"changes"}), ({}, before)):
        bundle.set_anomaly(copy, calibrated(changes))
        assert set(json.loads((copy / "bundle.json").read_text())["anomaly"]) == names
        loaded = bundle.load(copy).anomaly
        assert loaded is not None
        assert loaded.changes == changes


@pytest.mark.parametrize(
    "changes",
    [{}, None, [], {"clean": 98}, {"clean": 99, "blur": 0}, {"clean": 98.5, "blur": 0.5}, {"../x": 99},
     {"clean": True, "blur": 98}, {"clean": 100, "blur": -1}],
)  # fmt: skip
def test_wrong_changes_of_a_calibration_are_refused(copy: Path, changes: Any) -> None:
    found = json.loads((copy / "bundle.json").read_text())["anomaly"]
    change(copy, anomaly={**found, "changes": CHANGED})
    bundle.load(copy)
    change(copy, anomaly={**found, "changes": changes})
    with pytest.raises(BundleError, match=r"anomaly\.changes"):
        bundle.load(copy)


def test_two_builds_give_the_same_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    again = write_tiny(tmp_path / "again")
    for path in tiny_folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_writing_replaces_links_instead_of_following_them(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bundle.json").symlink_to(outside)
    write_tiny(tmp_path / "b")
    assert outside.read_text() == "untouched"
    bundle.load(tmp_path / "b")


@pytest.mark.parametrize(
    ("classes", "more", "message"),
    [
        (["only"], "", "classes"),
        (["one", "two"], "#" * files.SETTINGS_BYTES, r"settings\.yaml has 65\d+ bytes"),
    ],
)
def test_what_would_not_load_is_not_written(
    tiny: bundle.Bundle, tmp_path: Path, classes: list[str], more: str, message: str
) -> None:
    network = (tiny.classifier, {"widths": [8, 8, 8]})
    with pytest.raises(BundleError, match=message):
        bundle.write(
            tmp_path / "b",
            name="x",
            version="1",
            classes=classes,
            shape=(3, 32, 32),
            networks={"classifier": network},
            settings="default: a\ncaps: {chains: 1, steps: 1}\nsettings: {a: {dynamics: none}}\n" + more,
            anomaly=None,
        )
    assert not (tmp_path / "b").exists()


def test_the_shipped_bundle_keeps_its_weights_and_says_how_it_was_made(shipped: Path) -> None:
    loaded = bundle.load(shipped)
    assert loaded.provenance.command.startswith("export bundle --classifier")
    assert set(loaded.provenance.inputs) == {"classifier", "score", "energy"}
    assert sorted(bundle.file_names(shipped)) == sorted(path.name for path in shipped.iterdir())
