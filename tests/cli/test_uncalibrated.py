"""A bundle without an anomaly calibration: every command that needs one says so in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from metastable import bundle
from metastable.cli import main
from metastable.errors import BundleError
from tests.bundle.test_folder import change
from tests.conftest import write_tiny

SAID = "the bundle tiny has no anomaly calibration: run `metastable calibrate` first"
IMAGES = ("--images", "samples", "--n", 1, "--test-share", 1)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny(tmp_path_factory.mktemp("bare") / "bundle")
    change(folder, anomaly=None)
    return folder


def test_a_calibration_is_there_or_said_to_be_missing(bare: Path, tiny: bundle.Bundle) -> None:
    assert tiny.calibration is tiny.anomaly
    loaded = bundle.load(bare)
    assert loaded.anomaly is None
    with pytest.raises(BundleError, match=SAID):
        _ = loaded.calibration


@pytest.mark.parametrize(
    "words",
    [
        ("bundle", "check"),
        ("ask", "samples/cat.png", "--in-process", "--bundle"),
        ("evaluate", "table", *IMAGES, "--work", "WORK", "--bundle"),
        ("evaluate", "robust", *IMAGES, "--rows", "fast:transfer", "--work", "WORK", "--bundle"),
        ("evaluate", "honest", *IMAGES, "--judged", 0, "--changes", "clean", "--bundle"),
        ("evaluate", "latency", "--images", "samples", "--rounds", 1, "--bundle"),
        ("evaluate", "resubmit", "--work", "WORK", "--settings", "fast", "--bundle"),
        ("evaluate", "figure", "scores", "--work", "WORK", "--bundle"),
        ("demo", "--bundle"),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
def test_commands_say_so(
    bare: Path,
    tmp_path: Path,
    root: Path,
    words: tuple[object, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    asked = [str(tmp_path / "work") if word == "WORK" else str(word) for word in words]
    assert main([*asked, str(bare)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {SAID}"
