"""Metrics: bounded labels, our own buckets, one address for several processes."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from metastable.serving.metrics import STAGES, Counted, Metrics, outcomes

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def text_of(metrics: Metrics) -> str:
    return generate_latest(metrics.exposed()).decode()


def judged(setting: str, **changes: Any) -> Counted:
    plain = Counted(setting, 1, 50.0, 3.5, True, label_changed=False, capped=False, late=False, redrawn=0)
    return dataclasses.replace(plain, **changes)


def test_a_request_is_counted_and_timed() -> None:
    metrics = Metrics(settings=["fast"])
    metrics.request("fast", "ok", 0.02)
    value = metrics.registry.get_sample_value
    assert value("metastable_requests_total", {"setting": "fast", "outcome": "ok"}) == 1
    assert value("metastable_request_seconds_bucket", {"setting": "fast", "le": "0.01"}) == 0
    assert value("metastable_request_seconds_bucket", {"setting": "fast", "le": "0.025"}) == 1


def test_a_verdict_fills_its_series() -> None:
    metrics = Metrics(settings=["fast"])
    metrics.verdict(judged("fast", chains=16, capped=True))
    metrics.verdict(judged("fast", chains=8, steps=0.25, flagged=False, redrawn=2))
    value, fast = metrics.registry.get_sample_value, {"setting": "fast"}
    assert value("metastable_chains_sum", fast) == 24
    assert value("metastable_steps_sum", fast) == 50.25
    assert value("metastable_anomaly_score_count") == 2
    assert value("metastable_capped_total", fast) == 1
    assert value("metastable_late_total", fast) == 0
    assert value("metastable_redrawn_chains_total") == 2
    assert value("metastable_anomaly_flags_total", fast) == 1
    assert value("metastable_label_changed_total", fast) == 0  # there, so that a rate can be taken


def test_every_promised_name_is_exposed() -> None:
    metrics = Metrics(settings=["fast"])
    metrics.engine(4, 1.5, 7)
    metrics.model("cifar10", "1", "ab12")
    for stage in STAGES:
        metrics.stage(stage, 0.5)
    text = text_of(metrics)
    assert "metastable_batch_size_sum 4.0" in text
    assert "metastable_backlog_seconds 1.5" in text
    assert "metastable_chains_under_way 7.0" in text
    assert 'metastable_model_info{digest="ab12",model="cifar10",version="1"} 1.0' in text
    assert 'metastable_stage_seconds_bucket{le="0.001",stage="queue"} 0.0' in text
    assert 'metastable_stage_seconds_bucket{le="30.0",stage="classify"} 1.0' in text
    assert "# TYPE metastable_label_changed_total counter" in text


def test_the_codes_of_the_library_are_outcomes() -> None:
    assert {"ok", "internal", "too_large", "invalid_image", "deadline_exceeded"} <= set(outcomes())


@pytest.mark.slow
@given(names=st.lists(st.text(), max_size=30))
def test_labels_are_bounded_whatever_comes_in(names: list[str]) -> None:
    metrics = Metrics(settings=["fast", "none"])
    for name in names:
        metrics.request(name, name, 0.1)
        metrics.stage(name, 0.1)
        metrics.verdict(judged(name, capped=True, late=True, redrawn=1, label_changed=True))
    seen = {
        value
        for family in metrics.registry.collect()
        for sample in family.samples
        for label, value in sample.labels.items()
        if label != "le"
    }
    assert seen <= {"fast", "none", "other", *STAGES, *outcomes()}


def test_metrics_are_served_and_a_taken_port_is_survived() -> None:
    port = free_port()
    first, second = Metrics(settings=["fast"]), Metrics(settings=["fast"])
    first.request("fast", "ok", 0.1)
    first.serve(port)
    second.serve(port)
    second.serve(-1)
    second.serve(70000)
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    assert 'metastable_requests_total{outcome="ok",setting="fast"} 1.0' in answer.text


_WORKER = """
import sys
from metastable.serving.metrics import Metrics
metrics = Metrics(settings=["fast"])
metrics.model("cifar10", "1", "ab12")
metrics.request("fast", "ok", 0.1)
metrics.serve(int(sys.argv[1]))
print("up", flush=True)
sys.stdin.read()
"""


def scrape(port: int, seconds: float = 60.0) -> str:
    """The metrics, as soon as somebody serves them."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.slow
def test_workers_share_one_address_and_another_takes_over(tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    workers = []
    try:
        for _ in range(2):
            command = [sys.executable, "-c", _WORKER, str(port)]
            worker = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            workers.append(worker)
            assert worker.stdout is not None
            assert worker.stdout.readline() == "up\n"
        both = 'metastable_requests_total{outcome="ok",setting="fast"} 2.0'
        assert both in scrape(port)
        workers[0].send_signal(signal.SIGKILL)  # it had the port
        workers[0].wait(60)
        text = scrape(port)
        assert both in text  # what a dead worker counted stays counted
        assert 'metastable_model_info{digest="ab12",model="cifar10",version="1"} 1.0' in text
        assert "pid=" not in text
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
