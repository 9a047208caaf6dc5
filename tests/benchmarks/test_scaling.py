from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.scaling_costs import Recorded
from benchmarks.scaling_model import capacity
from benchmarks.scaling_requests import mix_of
from benchmarks.scaling_simulation import Fleet
from metastable.bundle import Bundle
from metastable.engine.costs import CLASSIFY, LOOK
from metastable.errors import DataError, MetastableError

RECORDED = Recorded(
    "tiny", "torch", "toy", 1, {work: {n: 3e-3 * n for n in (1, 2, 4)} for work in (CLASSIFY, LOOK, "fast")}
)
MIX = "none=0.3,fast=0.7"


def arguments(folder: Path, bundle: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default=bundle)
    parser.add_argument("--out", type=Path)
    scaling.fill(parser)
    RECORDED.write(costs := folder / "costs.json")
    return parser.parse_args(["--costs", str(costs), "--mix", MIX, "--work", str(folder / "work"), *words])


@pytest.mark.slow
def test_rows_are_simulated_once_and_stand_beside_what_was_predicted(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "capacity", partial(capacity, count=150))
    fleet = Fleet(RECORDED, mix_of(tiny, MIX, 0.1))
    config = scaling.ScalingConfig(RECORDED, fleet.mix.named, 0.1, seconds=0.2, requests=30, seed=0)
    picture = tmp_path / "scaling.png"
    found = scaling.measure(tiny, fleet, config, [1, 16], tmp_path / "work", picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    page = picture.with_suffix(".md").read_text().splitlines()
    assert [line.count("|") for line in page if line] == [8] * 5 + [10] * (2 + len(found["rows"]))
    assert 0 < found["bookkeeping_ms"] < 1000
    assert len(found["rows"]) == 2 * len(scaling.LOADS) + 4
    assert [row["setting"] for row in found["capacity"]] == ["the mix", "none", "fast"]
    most = found["capacity"][0]["requests_a_second"]
    for row in found["rows"]:
        assert row["rate"] == pytest.approx(row["load"] * row["replicas"] * most)
        assert row["predicted_goodput"] == pytest.approx(min(row["rate"], row["replicas"] * most))
        assert (row["predicted_p99_ms"] is None) == (row["load"] >= 1)
    assert {row["router"] for row in found["rows"] if row["replicas"] == 1} == {scaling.SERVES}

    def again(*given: Any) -> Any:
        raise AssertionError("this row is there")

    monkeypatch.setattr(scaling, "simulate", again)
    monkeypatch.setattr(scaling, "bookkeeping", lambda *given: found["bookkeeping_ms"])
    assert scaling.measure(tiny, fleet, config, [1, 16], tmp_path / "work") == found
    other = scaling.ScalingConfig(RECORDED, fleet.mix.named, 0.1, seconds=0.2, requests=30, seed=1)
    with pytest.raises(DataError, match="another configuration"):
        scaling.measure(tiny, fleet, other, [1], tmp_path / "work")


def test_a_plan_is_for_a_rate_and_a_latency(tiny_folder: Path, tmp_path: Path) -> None:
    found = scaling.run(arguments(tmp_path, tiny_folder, "--rate", "200", "--p99", "5"))
    assert found["replicas"] >= 200 / found["requests_a_second"]
    assert 0 < found["predicted_p99_s"] <= 5
    assert found["alone"] <= 0.95
    for words in (("--rate", "200"), ("--p99", "1")):
        with pytest.raises(MetastableError, match="go together"):
            scaling.run(arguments(tmp_path, tiny_folder, *words))
    for words in (("--rate", "0", "--p99", "1"), ("--rate", "1", "--p99", "nan")):
        with pytest.raises(MetastableError, match="above 0"):
            scaling.run(arguments(tmp_path, tiny_folder, *words))
    with pytest.raises(MetastableError, match="whole numbers"):
        scaling.run(arguments(tmp_path, tiny_folder, "--replicas", "1,two"))
