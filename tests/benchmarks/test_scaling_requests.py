from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import scaling_requests
from benchmarks.scaling_requests import CLASSES, Mix
from metastable.bundle import Bundle
from metastable.errors import MetastableError
from metastable.settings import Setting
from metastable.stopping import Stopping, critical
from tests.launched import REPOSITORY

SETTING = Setting.of("slow", "adp", chains=150, delta=0.01, steps=1, sigma=0.1, step_bounds=(0.1, 2.0))


@pytest.mark.parametrize(("attacked", "images"), [(0.0, "natural"), (1.0, "pgd")])
def test_images_need_as_many_chains_as_the_recorded_ones(attacked: float, images: str) -> None:
    said = scaling_requests.margins(Mix(((SETTING, 1.0),), attacked), 4000, np.random.default_rng(0))
    said, numbers = said.astype(np.float64), np.arange(1, 151)
    means = said.cumsum(1) / numbers
    spreads = np.sqrt(np.maximum((said**2).cumsum(1) / numbers - means**2, 0)) * np.sqrt(
        numbers / np.maximum(numbers - 1, 1)
    )
    level = Stopping().delta / (CLASSES - 1)
    least = [critical(n, level) / n**0.5 if n >= Stopping().least else np.inf for n in numbers.tolist()]
    sure = np.abs(means[:, 5:]) > np.array(least[5:]) * spreads[:, 5:]
    totals = np.where(sure.any(1), sure.argmax(1) + 6, 151)
    recorded = json.loads((REPOSITORY / "docs" / "results" / "decide.json").read_text())["rows"]
    rows = [row for row in recorded if row["images"] == images]
    assert len(rows) == 4
    for row in rows:
        used = np.minimum(totals, row["cap"])
        assert (totals <= row["cap"]).mean() == pytest.approx(row["decided"], abs=0.03)
        assert used.mean() == pytest.approx(row["mean"], rel=0.12)
        assert np.median(used) == pytest.approx(row["median"], abs=1)


def test_a_stream_is_poisson_and_has_the_mix_that_is_asked_for() -> None:
    other = Setting.of("none", "none")
    found = scaling_requests.poisson(Mix(((SETTING, 0.25), (other, 0.75)), 0.1), 50.0, 100.0, seed=0)
    gaps = np.diff(found.at)
    assert found.at[-1] < 100
    assert len(found.at) == pytest.approx(5000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert found.settings.count(other) == pytest.approx(0.75 * len(found.at), rel=0.05)
    assert found.margins.shape == (len(found.at), 150)


def test_a_mix_names_settings_and_shares_of_one(tiny: Bundle) -> None:
    found = scaling_requests.mix_of(tiny, "none=0.25, fast=0.75", 0.1)
    assert found.named == {"none": 0.25, "fast": 0.75}
    for text, said in (("fast", "shares like"), ("fast=0.5", "come to 1"), ("nothing=1", "no settings")):
        with pytest.raises(MetastableError, match=said):
            scaling_requests.mix_of(tiny, text, 0.1)
    with pytest.raises(MetastableError, match="attacked"):
        scaling_requests.mix_of(tiny, "fast=1", 1.5)
