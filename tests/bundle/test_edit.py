import json
import shutil
from pathlib import Path

import pytest
import torch

from metastable import anomaly, bundle
from metastable.bundle import files
from metastable.errors import BundleError


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def shift(threshold: float = 0.4) -> anomaly.Threshold:
    values = torch.linspace(0, threshold, 99)
    return anomaly.threshold_of(values, false_positive_rate=0.01, data={"name": "x"})


def test_new_settings_change_the_digest_and_are_checked(copy: Path) -> None:
    before = bundle.load(copy)
    text = (copy / "settings.yaml").read_text()
    bundle.set_settings(copy, text.replace("default: fast", "default: none"))
    after = bundle.load(copy)
    assert (before.settings.default, after.settings.default) == ("fast", "none")
    assert after.digest != before.digest
    for wrong in ("x", text.replace("default: fast", "default: nothing")):
        with pytest.raises(BundleError, match=r"settings\.yaml"):
            bundle.set_settings(copy, wrong)
    with pytest.raises(BundleError, match=r"settings\.yaml has .* bytes, and at most 65536 are read"):
        bundle.set_settings(copy, text + "#" * files.SETTINGS_BYTES)
    assert bundle.load(copy).digest == after.digest


def test_settings_mirror_no_chains_of_a_classifier_that_averages_views(copy: Path) -> None:
    text = (copy / "settings.yaml").read_text()
    mirrored = text.rstrip("\n") + "\n  twice: {dynamics: noise, steps: 1, sigma: 0.1, mirror: true}\n"
    with pytest.raises(BundleError, match=r"the settings \['twice'\] mirror every second chain, and the"):
        bundle.set_settings(copy, mirrored)


def test_thresholds_of_shifts_are_kept_by_setting_and_belong_to_settings_that_are_there(copy: Path) -> None:
    before = bundle.load(copy)
    assert before.anomaly is not None
    assert before.shifts == {}
    assert "shifts" not in json.loads((copy / "bundle.json").read_text())
    shifts = {"fast": shift(), "softmax": shift(0.9)}
    bundle.set_anomaly(copy, before.anomaly, shifts)
    after = bundle.load(copy)
    assert (after.anomaly, after.shifts) == (before.anomaly, shifts)
    assert after.digest != before.digest
    with pytest.raises(BundleError, match=r"no settings \['fost'\] to calibrate"):
        bundle.set_anomaly(copy, before.anomaly, {"fost": shift()})
    assert bundle.load(copy).digest == after.digest
    bundle.set_anomaly(copy, before.anomaly)
    assert bundle.load(copy).shifts == {}


def test_a_threshold_goes_with_the_setting_that_it_was_set_on(copy: Path) -> None:
    before = bundle.load(copy)
    assert before.anomaly is not None
    bundle.set_anomaly(copy, before.anomaly, {"fast": shift(), "softmax": shift()})
    text = (copy / "settings.yaml").read_text()
    [line] = [line for line in text.splitlines() if line.strip().startswith("fast:")]
    sigma = before.settings["fast"].fields()["sigma"]
    changed = line.replace(f"sigma: {sigma}", f"sigma: {sigma + 0.01}")
    assert changed != line
    bundle.set_settings(copy, text.replace(line, changed))
    assert set(bundle.load(copy).shifts) == {"softmax"}


@pytest.mark.parametrize(
    "wrong", [None, [], {"../x": {}}, {"fast": {}}, {"fast": {"threshold": 2.0}}, {"fast": {"n": 0}},
              {"fast": {"more": 1}}, {"gone": {}}],
)  # fmt: skip
def test_wrong_thresholds_in_a_manifest_are_refused(copy: Path, wrong: object) -> None:
    found = bundle.load(copy)
    assert found.anomaly is not None
    bundle.set_anomaly(copy, found.anomaly, {"fast": shift()})
    raw = json.loads((copy / "bundle.json").read_text())
    good = raw["shifts"]["fast"]
    if isinstance(wrong, dict) and set(wrong) == {"gone"}:
        raw["shifts"] = {"gone": good}
    elif isinstance(wrong, dict) and wrong.get("fast"):
        raw["shifts"] = {"fast": good | wrong["fast"]}
    else:
        raw["shifts"] = wrong
    del raw["manifest_sha256"]
    compact = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
    text = json.dumps({**raw, "manifest_sha256": files.digest(compact)})
    (copy / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"shifts|thresholds of settings"):
        bundle.load(copy)
