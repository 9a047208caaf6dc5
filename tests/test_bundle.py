import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from metastable import anomaly, bundle
from metastable.errors import BundleError


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_folder, tmp_path / "b")
    return tmp_path / "b"


def change(folder: Path, **values: Any) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_round_trip(tiny: bundle.Bundle) -> None:
    assert (tiny.name, tiny.version, tiny.shape) == ("tiny", "1.2", (3, 32, 32))
    assert set(tiny.scores) == {"score", "energy"}
    x = torch.rand(2, 3, 32, 32)
    assert tiny.classifier(x).shape == (2, 10)
    assert tiny.scores["energy"](x).shape == x.shape
    assert not any(p.requires_grad for p in tiny.classifier.parameters())
    assert all(p.dtype == torch.float32 for p in tiny.classifier.parameters())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_found(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("flip") / "b"
    shutil.copytree(tiny_folder, folder)
    name = data.draw(st.sampled_from(["classifier.safetensors", "score.safetensors", "settings.yaml"]))
    raw = bytearray((folder / name).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(raw)
    with pytest.raises(BundleError, match=name):
        bundle.load(folder)


@settings(max_examples=40, deadline=None)
@given(junk=st.binary(max_size=200))
def test_any_manifest_is_a_bundle_error(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "bundle.json").write_bytes(junk)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        bundle.load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"extra": 1}, "keys"),
        ({"classes": ["one"]}, "classes"),
        ({"parts": {}}, "classifier"),
        ({"shape": [3, 32]}, "values to unpack"),
        ({"anomaly": {"threshold": 1}}, "argument"),
        ({"parts": {"classifier": {"architecture": "os.system", "arguments": {}, "sha256": ""}}}, "SHA-256"),
    ],
)
def test_a_wrong_manifest_is_refused(copy: Path, values: dict[str, Any], message: str) -> None:
    change(copy, **values)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


def replace_part(folder: Path, data: bytes, **fields: Any) -> None:
    """Swap the score part for other bytes, with a matching digest: what a hostile author can do."""
    (folder / "score.safetensors").write_bytes(data)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["parts"]["score"] |= {"sha256": hashlib.sha256(data).hexdigest(), **fields}
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_hostile_parts_are_refused(copy: Path) -> None:
    good = (copy / "score.safetensors").read_bytes()
    cases: list[tuple[bytes, dict[str, Any], str]] = [
        (good, {"architecture": "eval"}, "unknown architecture"),
        (good, {"arguments": {"widths": [10**6, 10**6, 10**6]}}, "do not fit"),
        (good, {"arguments": {"nonsense": 1}}, "do not fit"),
        (b"\x80\x04pickle", {}, "do not fit"),
        (save({"head.weight": torch.zeros(1)}), {}, "do not fit"),
    ]
    for data, fields, message in cases:
        replace_part(
            copy, data, **{"architecture": "ScoreNetwork", "arguments": {"widths": [4, 8, 8]}} | fields
        )
        with pytest.raises(BundleError, match=message):
            bundle.load(copy)


def test_weights_that_are_no_numbers_are_refused(copy: Path, tiny: bundle.Bundle) -> None:
    from safetensors.torch import load as load_tensors

    tensors = load_tensors((copy / "score.safetensors").read_bytes())
    tensors["head.bias"][0] = torch.nan
    replace_part(copy, save(tensors))
    with pytest.raises(BundleError, match="finite"):
        bundle.load(copy)


def test_missing_and_linked_parts_are_refused(copy: Path) -> None:
    (copy / "score.safetensors").rename(copy / "elsewhere")
    with pytest.raises(BundleError, match=r"score\.safetensors is missing"):
        bundle.load(copy)
    (copy / "score.safetensors").symlink_to(copy / "elsewhere")
    with pytest.raises(BundleError, match="link"):
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
