"""That variants of hardening are trained alike, judged, kept and compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ablation
from metastable import datasets
from metastable.errors import DataError, MetastableError
from metastable.training.harden_config import HardenConfig
from tests.training import harden_toys

CONFIG = ablation.AblationConfig(cpu_minutes=1e-4, n=6, natural=10, samples=2, steps=2, bf16=False)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", harden_toys.pictures)


@pytest.fixture
def base(tmp_path: Path) -> HardenConfig:
    return harden_toys.config(harden_toys.write_bundle(tmp_path / "bundle"))


@pytest.mark.slow
def test_every_variant_has_a_row_and_a_run_of_its_own(base: HardenConfig, tmp_path: Path) -> None:
    names = ("start", "A", "B", "D", "E2")
    found = ablation.measure(base, tmp_path, names, CONFIG, tmp_path / "work", tmp_path / "seen.png")
    assert [row["variant"] for row in found["rows"]] == list(names)
    for row in found["rows"]:
        assert 0 <= row["left"][1] <= row["left"][0] <= row["left"][2] <= 1
        assert row["ms_a_chain"] > 0
        assert row["updates"] == (0 if row["variant"] == "start" else 1)
    each = json.loads((tmp_path / "work" / "plan.json").read_text())
    assert set(each) == set(ablation.VARIANTS) - {"start"}
    assert all(one > 0 for one in each.values())
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    purifies = {name: (tmp_path / "work" / name / "run" / "purifier").exists() for name in names[1:]}
    assert purifies == {"A": True, "B": True, "D": False, "E2": True}


def test_what_is_done_is_not_done_again(base: HardenConfig, tmp_path: Path) -> None:
    first = ablation.measure(base, tmp_path, ["start"], CONFIG, tmp_path / "work")
    kept = tmp_path / "work" / "start" / "row.json"
    kept.write_text(json.dumps({**first["rows"][0], "what": "as it was"}))
    assert ablation.measure(base, tmp_path, ["start"], CONFIG, tmp_path / "work")["rows"][0]["what"] == (
        "as it was"
    )
    other = ablation.AblationConfig(cpu_minutes=1.0)
    with pytest.raises(DataError, match="another configuration"):
        ablation.measure(base, tmp_path, ["start"], other, tmp_path / "work")


def test_the_classifier_behind_b_needs_b(base: HardenConfig, tmp_path: Path) -> None:
    with pytest.raises(MetastableError, match="needs B"):
        ablation.measure(base, tmp_path, ["D behind B"], CONFIG, tmp_path / "work")


def test_wrong_answers_before_an_attack_are_lost() -> None:
    pipeline = harden_toys.pipeline()
    images = torch.rand(8, 3, 16, 16)
    with pipeline.held(), torch.no_grad():
        right = ablation.Noisy(pipeline, ablation.VOTES, seed=1)(images).argmax(1)
    wrong = (right + 1) % 10
    found = ablation.judged(pipeline, images, wrong, CONFIG)
    assert found["natural"][0] == 0
    assert found["left"][0] == 0


def test_a_target_averages_noisy_copies() -> None:
    pipeline, x = harden_toys.pipeline(), torch.rand(3, 3, 16, 16)
    one, many = (
        torch.stack([ablation.Noisy(pipeline, n, seed)(x) for seed in range(12)]).std(0).mean()
        for n in (1, 64)
    )
    assert many < one / 4
