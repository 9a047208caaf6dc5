"""One address for several processes, and what a dead one leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from metastable.serving.metrics import Metrics
from tests.launched import REPOSITORY, free_port


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def test_metrics_are_served_and_a_taken_port_is_survived() -> None:
    port = free_port()
    first, second = Metrics(settings=["fast"]), Metrics(settings=["fast"])
    first.request("fast", "ok", 0.1)
    first.serve(port)
    second.serve(port)
    second.serve(-1)
    second.serve(70000)
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    assert 'metastable_requests_total{arm="",outcome="ok",setting="fast"} 1.0' in answer.text


_WORKER = """
import sys
from metastable.serving.metrics import Metrics
metrics = Metrics(settings=["fast"])
metrics.model("cifar10", "1", "ab12", "torch")
metrics.engine(2.0, 3)
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
        both = 'metastable_requests_total{arm="",outcome="ok",setting="fast"} 2.0'
        text = scrape(port)
        assert both in text
        assert "metastable_backlog_seconds 4.0" in text
        workers[0].send_signal(signal.SIGKILL)  # it had the port
        workers[0].wait(60)
        text = scrape(port)
        assert "metastable_backlog_seconds 2.0" in text  # it has died with its worker
        assert "metastable_model_loads_total 2.0" in text
        assert both in text  # what a dead worker counted stays counted
        assert 'metastable_model_info{digest="ab12",model="cifar10",version="1"} 1.0' in text
        assert "pid=" not in text
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


_EVERYTHING = """
import sys
from metastable.anomaly import Threshold
from metastable.engine.job import Segment
from metastable.serving.metrics import Counted, Metrics
metrics = Metrics(settings=["fast"])
found = Threshold(threshold=0.9, false_positive_rate=0.1, n=9, data={}, quantiles={"0.5": 0.5})
metrics.model("cifar10", "1", "ab12", "torch")
metrics.calibrated("1", "score_norm", "", found)
metrics.capacity(30.0, 1024)
metrics.request("fast", "ok", 0.1)
metrics.stage("queue", 0.1)
metrics.segment(Segment(1, 2, 4, 0))
rest = dict(label_changed=False, early=False, capped=False, late=False)
metrics.verdict(Counted("fast", 1, 1.0, 0.3, 0.1, {"score_norm": 0.3}, frozenset(), **rest))
def names(registry):
    return {family.name for family in registry.collect() if family.samples}
print(sorted(names(metrics.registry) ^ names(metrics.exposed())), len(names(metrics.exposed())))
"""


@pytest.mark.slow
def test_nothing_is_lost_where_processes_share_an_address(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", _EVERYTHING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    missing, count = done.stdout.rsplit(maxsplit=1)
    assert missing == "[]"
    assert int(count) > 25
