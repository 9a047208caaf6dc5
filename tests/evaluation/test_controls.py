"""Controls: attacks that must find nothing, and judges that must agree."""

import dataclasses
from pathlib import Path

import pytest

from metastable import bundle, datasets
from metastable.attacks.white_box import white_box
from metastable.evaluation import controls
from tests.evaluation.asked import config

pytestmark = pytest.mark.slow


def test_controls_find_an_attack_that_leaves_its_ball_and_a_judge_of_another_defense(
    tiny: bundle.Bundle, test_set: datasets.ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("adv_lib")
    pytest.importorskip("art")
    some, asked = test_set.take(3), config(eps=0.2, steps=4)
    rows = controls.measure(tiny, some, "fast", "none", asked, tmp_path / "w", tmp_path / "s")
    assert [row["passed"] for row in rows] == [True] * 4
    assert rows[0]["found"].startswith("0 of ")
    assert "| yes |" in controls.markdown(rows)
    # An attacker who knows another noise level attacks another defense.
    weak = tiny.settings["fast"].moving(sigma=0.02, sigma_unflagged=0.01)
    known = white_box(tiny, "fast")
    monkeypatch.setattr(controls, "white_box", lambda *_: dataclasses.replace(known, setting=weak))
    assert controls.agreement(tiny, test_set, "fast") > 5
