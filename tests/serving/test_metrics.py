"""Metrics: bounded labels, our own buckets, what is expected."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from metastable.anomaly import MARKS, threshold_of
from metastable.engine.job import Segment
from metastable.serving.metrics import SCORE_NORM, SHIFT, STAGES, STATISTICS, Counted, Metrics, outcomes
from metastable.version import __version__


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def text_of(metrics: Metrics) -> str:
    return generate_latest(metrics.exposed()).decode()


def judged(setting: str, **changes: Any) -> Counted:
    plain = Counted(
        setting,
        chains=1,
        steps=50.0,
        score=3.5,
        shift=0.15,
        ranks={SCORE_NORM: 0.97},
        flagged=frozenset({SCORE_NORM}),
        label_changed=False,
        early=False,
        capped=False,
        late=False,
    )
    return dataclasses.replace(plain, **changes)


def test_a_request_is_counted_and_timed() -> None:
    metrics = Metrics(settings=["fast"])
    metrics.request("fast", "ok", 0.02)
    value = metrics.registry.get_sample_value
    assert value("metastable_requests_total", {"setting": "fast", "outcome": "ok", "arm": ""}) == 1
    # A rate must see the first one.
    assert value("metastable_requests_total", {"setting": "fast", "outcome": "internal", "arm": ""}) == 0
    fast = {"setting": "fast", "arm": ""}
    assert value("metastable_request_seconds_bucket", fast | {"le": "0.01"}) == 0
    assert value("metastable_request_seconds_bucket", fast | {"le": "0.025"}) == 1


def test_requests_count_in_their_arm() -> None:
    metrics = Metrics(settings=["fast"])
    for arm in ("treatment", "treatment", ""):
        metrics.request("fast", "ok", 0.02, arm)
    for arm, count in (("treatment", 2), ("", 1), ("control", None)):
        labels = {"setting": "fast", "outcome": "ok", "arm": arm}
        assert metrics.registry.get_sample_value("metastable_requests_total", labels) == count


def test_a_verdict_fills_its_series() -> None:
    metrics = Metrics(settings=["fast"])
    metrics.verdict(judged("fast", chains=16, capped=True))
    metrics.verdict(judged("fast", chains=8, steps=0.25, flagged=frozenset({SHIFT}), ranks={}, early=True))
    value, fast = metrics.registry.get_sample_value, {"setting": "fast"}
    assert value("metastable_chains_sum", fast) == 24
    assert value("metastable_steps_sum", fast) == 50.25
    assert value("metastable_anomaly_score_count") == 2
    assert value("metastable_capped_total", fast) == 1
    assert value("metastable_late_total", fast) == 0
    assert value("metastable_decided_early_total", fast) == 1
    assert value("metastable_anomaly_shift_sum", fast) == 0.3
    for statistic in STATISTICS:
        assert value("metastable_anomaly_flags_total", fast | {"statistic": statistic}) == 1
    rank = {"statistic": SCORE_NORM}
    assert value("metastable_anomaly_rank_bucket", rank | {"le": "0.95"}) == 0
    assert value("metastable_anomaly_rank_bucket", rank | {"le": "0.99"}) == 1
    assert value("metastable_anomaly_rank_count", {"statistic": SHIFT}) is None  # not calibrated
    assert value("metastable_label_changed_total", fast) == 0  # there, so that a rate can be taken


def test_every_promised_name_is_exposed() -> None:
    metrics = Metrics(settings=["fast"])
    metrics.segment(Segment(jobs=4, chains=6, width=8, redrawn=2))
    metrics.capacity(30.0, 1024)
    metrics.engine(1.5, 7)
    metrics.model("cifar10", "1", "ab12", "torch")
    metrics.restarted()
    for stage in STAGES:
        metrics.stage(stage, 0.5)
    text = text_of(metrics)
    assert "metastable_batch_size_sum 4.0" in text
    assert 'metastable_batch_fill_ratio_bucket{le="0.5"} 0.0' in text
    assert 'metastable_batch_fill_ratio_bucket{le="0.75"} 1.0' in text
    assert "metastable_redrawn_chains_total 2.0" in text
    assert "metastable_backlog_limit_seconds 30.0" in text
    assert "metastable_chain_slots 1024.0" in text
    assert "metastable_restarts_total 1.0" in text
    assert "metastable_model_loads_total 1.0" in text
    named = f'bundle="cifar10",digest="ab12",runner="torch",version="{__version__}"'
    assert f"metastable_build_info{{{named}}} 1.0" in text
    assert "metastable_backlog_seconds 1.5" in text
    assert "metastable_chains_under_way 7.0" in text
    assert 'metastable_model_info{digest="ab12",model="cifar10",version="1"} 1.0' in text
    assert 'metastable_stage_seconds_bucket{le="0.001",stage="queue"} 0.0' in text
    assert 'metastable_stage_seconds_bucket{le="30.0",stage="classify"} 1.0' in text
    assert "# TYPE metastable_label_changed_total counter" in text


def test_what_is_expected_of_the_statistics_is_shown() -> None:
    metrics = Metrics(settings=["fast"])
    found = threshold_of(torch.arange(1, 100).double(), false_positive_rate=0.05, data={})
    metrics.calibrated("1", SHIFT, "fast", found)
    labels = {"version": "1", "statistic": SHIFT, "setting": "fast"}
    value = metrics.registry.get_sample_value
    assert value("metastable_anomaly_threshold", labels) == 95
    assert value("metastable_anomaly_expected_flag_ratio", labels) == 0.05
    assert value("metastable_anomaly_calibrated_value", labels | {"share": "0.5"}) == 50
    shares = [
        float(sample.labels["share"])
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "metastable_anomaly_calibrated_value"
    ]
    assert tuple(shares) == MARKS
    other = threshold_of(torch.arange(1, 100).double() / 10, false_positive_rate=0.1, data={})
    metrics.calibrated("2", SHIFT, "fast", other)
    assert value("metastable_anomaly_threshold", labels) == 95
    assert value("metastable_anomaly_threshold", labels | {"version": "2"}) == 9


def test_each_engine_adds_what_it_can_do() -> None:
    metrics = Metrics(settings=["fast"])
    for chains in (1024, 64):
        metrics.capacity(4.0, chains)
    assert (
        metrics.registry.get_sample_value("metastable_backlog_limit_seconds") == 4
    )  # each refuses by itself
    assert metrics.registry.get_sample_value("metastable_chain_slots") == 1088


def test_ranks_are_counted_at_the_marks_of_a_calibration() -> None:
    metrics = Metrics(settings=["fast"])
    metrics.verdict(judged("fast"))
    bounds = [
        float(sample.labels["le"])
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "metastable_anomaly_rank_bucket"
    ]
    assert tuple(bounds) == (*MARKS, math.inf)


def test_the_codes_of_the_library_are_outcomes() -> None:
    assert {"ok", "internal", "too_large", "invalid_image", "deadline_exceeded"} <= set(outcomes())


@pytest.mark.slow
@given(names=st.lists(st.text(), max_size=30))
def test_labels_are_bounded_whatever_comes_in(names: list[str]) -> None:
    metrics = Metrics(settings=["fast", "none"])
    for name in names:
        metrics.request(name, name, 0.1)
        metrics.stage(name, 0.1)
        metrics.verdict(judged(name, capped=True, late=True, early=True, label_changed=True))
    seen = {
        value
        for family in metrics.registry.collect()
        for sample in family.samples
        for label, value in sample.labels.items()
        if label != "le"
    }
    assert seen <= {"", "fast", "none", "other", *STATISTICS, *STAGES, *outcomes()}
