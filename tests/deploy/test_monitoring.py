"""The dashboard and the rules, against a server with traffic, and Prometheus's own tools where they are."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml

from metastable import anomaly
from metastable.bundle import Bundle
from metastable.serving.metrics import Metrics
from tests.launched import REPOSITORY, free_port
from tests.serving.door.conftest import png
from tests.serving.door.running import Running, running

FOLDER = REPOSITORY / "deploy" / "monitoring"
PATIENCE = 60.0
NAME = re.compile(r"\bmetastable[a-z0-9_:]+")


def queries() -> list[str]:
    """Of the dashboard, as Grafana would send them for all instances."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [one.replace("$__rate_interval", "1m").replace("$instance", ".*") for one in found]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def tool(name: str) -> str:
    """Its path; the test is skipped where there is none."""
    variable = f"METASTABLE_{name.upper()}"
    found = os.environ.get(variable) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH: install Debian's package prometheus, or name it in {variable}")
    return found


@pytest.fixture(scope="module")
def served(tiny: Bundle) -> Iterator[Running]:
    """A door that has answered, calibrated for the prediction shift too."""
    shift = anomaly.threshold_of(torch.linspace(0, 1, 99), false_positive_rate=0.05, data={})
    with running(dataclasses.replace(tiny, shifts={"fast": shift})) as door:
        send(door)
        yield door


def send(door: Running) -> None:
    with httpx.Client(base_url=door.url, trust_env=False, timeout=PATIENCE) as client:
        for setting in ("none", "fast"):
            assert client.post(f"/classify?setting={setting}", content=png()).status_code == 200
        assert client.post("/classify", content=b"no image").status_code == 415


@pytest.fixture(scope="module")
def address(served: Running) -> str:
    """Of its metrics."""
    port = free_port()
    served.door.metrics.serve(port)
    return f"127.0.0.1:{port}"


@pytest.mark.slow
def test_every_name_that_is_used_is_in_the_metrics(address: str) -> None:
    text = httpx.get(f"http://{address}/metrics", trust_env=False).text
    known = set(re.findall(r"^(metastable\w+)", text, re.M))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for one in [*queries(), *(rule["expr"] for rule in rules())] for name in NAME.findall(one)}
    assert len(used) > 30
    assert used - known - recorded == set()


def test_the_page_explains_every_metric_and_alert() -> None:
    page = (REPOSITORY / "docs" / "monitoring.md").read_text()
    for family in Metrics(settings=["fast"]).registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}" in page, name
    for rule in rules():
        assert f"`{rule.get('alert') or rule['record']}`" in page


def test_every_alert_says_what_and_how_grave() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 10
    for rule in alerts:
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"]["summary"]


def test_promtool_accepts_the_files_and_alerts_fire_as_they_should(tmp_path: Path) -> None:
    promtool = tool("promtool")
    shutil.copy(FOLDER / "rules.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("rules_test.yml"), tmp_path)
    commands = (
        ["check", "rules", str(FOLDER / "rules.yml")],
        ["check", "config", str(FOLDER / "prometheus.yml")],
        ["test", "rules", str(tmp_path / "rules_test.yml")],
    )
    for command in commands:
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_promtool_finds_no_fault_with_the_metrics(address: str) -> None:
    promtool = tool("promtool")
    text = httpx.get(f"http://{address}/metrics", trust_env=False).text
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """A Prometheus that looks at the target every second."""
    binary, port = tool("prometheus"), free_port()
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    shutil.copy(FOLDER / "rules.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    listen = f"127.0.0.1:{port}"
    command = [binary, "--config.file", str(folder / "prometheus.yml"), "--web.listen-address", listen]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--storage.tsdb.path", str(folder / "data")], stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://{listen}/api/v1", trust_env=False, timeout=PATIENCE) as client:
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE)


def values(client: httpx.Client, query: str) -> list[float]:
    """Of all series that a query returns; nothing while Prometheus starts."""
    try:
        answer = client.get("/query", params={"query": query}).json()
    except (httpx.TransportError, ValueError):
        return []
    assert answer["status"] == "success", answer
    return [float(one["value"][1]) for one in answer["data"]["result"]]


@pytest.mark.server
def test_every_query_returns_data(served: Running, address: str, tmp_path: Path) -> None:
    recorded = [rule["record"] for rule in rules() if "record" in rule]
    wanted = {*queries(), *recorded}
    with prometheus(tmp_path, address) as client:
        ends = time.monotonic() + 2 * PATIENCE
        while wanted and time.monotonic() < ends:
            send(served)
            time.sleep(0.5)
            wanted = {one for one in wanted if not any(map(math.isfinite, values(client, one)))}
        assert wanted == set(), (tmp_path / "log").read_text()[-2000:]
        states = client.get("/rules").json()["data"]["groups"]
        assert {rule["health"] for group in states for rule in group["rules"]} == {"ok"}
