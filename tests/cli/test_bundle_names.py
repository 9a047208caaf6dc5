"""Every command that takes a bundle takes a shipped one by its name, and says what that one lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from metastable import cli
from metastable.bundle import shipped
from metastable.cli.completion import every

OWN = {
    "metastable ask",  # without PyTorch until it needs it
    "metastable purify",
    "metastable serve",
    "metastable evaluate denoising",
    "metastable train harden",  # the configuration of a run keeps what was written
    "metastable train purified",
    "metastable train energy-device",
    "metastable bench gpu loan",  # hands it on to other commands
}
"""Commands that look the name up when they run."""


def test_every_bundle_may_be_a_name() -> None:
    found = {
        one.prog: action.type
        for one in every(cli.parser(lambda _: True))
        for action in one._actions
        if {"--bundle", "--base"} & set(action.option_strings)
    }
    assert len(found) > 30
    assert {prog for prog, kind in found.items() if kind is not shipped.path} == OWN


@pytest.mark.parametrize(
    "words",
    [
        "train harden --images samples --mode stability --out OUT --bundle",
        "train energy-device --images samples --out OUT --bundle",
        "calibrate --images samples --bundle",
        "evaluate latency --bundle",
        "evaluate controls --work OUT --bundle",
        "loadtest make --images samples --out OUT.npz --bundle",
        "export all --out OUT --bundle",
        "export mar --out OUT.mar --bundle",
        "bench price --bundle",
        "demo --bundle",
        "ask samples/cat.png --in-process --bundle",
    ],
)
def test_a_purifier_by_its_name_is_said_to_have_no_classifier(
    words: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    assert cli.main([*words.replace("OUT", str(tmp_path / "out")).split(), "natural"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the bundle natural has no classifier: it purifies images (")
