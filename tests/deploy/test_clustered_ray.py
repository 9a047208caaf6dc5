"""Replicas on a real cluster of Ray: node processes on loopback, killed and added under load.

`make test-ray` runs these, in an environment that has Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry

pytest.importorskip("ray")

import ray
from ray.cluster_utils import Cluster

from deploy import ray_cluster, ray_serve
from deploy.clustered import Deployed
from deploy.run_folder import Failed
from metastable import bundle as bundles
from metastable.bundle import Bundle
from metastable.serving.metrics import Metrics
from tests.conftest import write_tiny
from tests.launched import REPOSITORY, free_port
from tests.serving.door.conftest import png
from tests.serving.door.running import Running, before

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

PATIENCE = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs no replica, as the nodes come and go; it has what belongs to the cluster."""
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000},
    )
    yield made
    with contextlib.suppress(Exception):
        made.shutdown()
    ray.shutdown()


@contextlib.contextmanager
def nodes(cluster: Cluster, count: int) -> Iterator[list[Any]]:
    """So many machines for replicas, as far as Ray knows."""
    there = [add(cluster) for _ in range(count)]
    try:
        yield there
    finally:
        for one in there:
            with contextlib.suppress(Exception):
                cluster.remove_node(one, allow_graceful=False)


def add(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, resources={"replica": 1}, object_store_memory=80_000_000)


@contextlib.contextmanager
def served(cluster: Cluster, folder: Path, bundle: Bundle, **more: Any) -> Iterator[Running]:
    more = {"allow_seed": True, "resources": {"replica": 1}, **more}
    plan = ray_serve.Plan(str(folder), bundle.digest, "torch", **more)
    metrics = Metrics(CollectorRegistry(), settings=bundle.settings.names)
    life = Deployed(plan, bundle, metrics, cluster.address)
    try:
        with before(life.backend, metrics=metrics, around=life) as found:
            until(lambda: life.backend.count >= plan.least, "replicas")
            yield found
    finally:
        took_away(cluster)  # a door leaves the application where the cluster is not its own


def until(true: Any, what: str) -> None:
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


def ask(url: str, setting: str = "fast", seed: int = 7) -> httpx.Response:
    headers = {"X-Metastable-Seed": str(seed), "X-Metastable-Setting": setting}
    return httpx.post(url + "/classify", content=png(), headers=headers, timeout=PATIENCE, trust_env=False)


def test_a_node_that_is_killed_loses_no_request(cluster: Cluster, tiny_folder: Path, tiny: Bundle) -> None:
    with nodes(cluster, 2) as there, served(cluster, tiny_folder, tiny, least=2, most=2) as door:
        assert ask(door.url).status_code == 200
        answers: list[httpx.Response] = []
        stop = threading.Event()

        def client(number: int) -> None:
            while not stop.is_set():
                answers.append(ask(door.url, seed=number))

        with ThreadPoolExecutor(6) as pool:
            for number in range(6):
                pool.submit(client, number)
            until(lambda: len(answers) > 30, "answers before")
            cluster.remove_node(there.pop(), allow_graceful=False)
            killed = len(answers)
            until(lambda: len(answers) > killed + 60, "answers after")
            there.append(add(cluster))  # as an operator, or an autoscaler, would
            until(lambda: door.backend.count == 2, "the replica that takes its place")
            stop.set()
        found = Counter(one.status_code for one in answers)
        assert set(found) <= {200, 503}, found
        assert found[200] > 60
        for one in answers:
            if one.status_code == 503:
                assert int(one.headers["retry-after"]) >= 1
        by_seed: dict[str, set[Any]] = {}
        for one in answers:
            if one.status_code == 200:
                by_seed.setdefault(one.request.headers["x-metastable-seed"], set()).add(one.json()["label"])
        assert all(len(labels) == 1 for labels in by_seed.values())


def test_a_request_that_kills_its_replica_stops_no_other(
    cluster: Cluster, tmp_path: Path, tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose seed is 666 ends the process that works on it: at most as many replicas as it is asked."""
    folder = write_tiny(tmp_path / "bundle")
    monkeypatch.setattr(ray_serve, "Engine", Mortal)
    with nodes(cluster, 2), served(cluster, folder, tiny, least=2, most=2) as door:
        assert ask(door.url).status_code == 200
        fatal = ask(door.url, seed=666)
        assert fatal.status_code == 503
        assert int(fatal.headers["retry-after"]) >= 1
        until(lambda: ask(door.url).status_code == 200, "answers after it")
        until(lambda: door.backend.count == 2, "both replicas")
        assert ask(door.url).status_code == 200


class Mortal(ray_serve.Engine):
    """A replica with a fault of the worst kind."""

    async def ask(self, asked: Any) -> Any:
        if asked.options.seed == 666:
            os._exit(1)
        return await super().ask(asked)


def test_work_that_waits_brings_a_second_replica(cluster: Cluster, tmp_path: Path) -> None:
    text = "default: slow\ncaps: {chains: 64, steps: 100}\nsettings:\n" + (
        "  slow: {dynamics: langevin, network: energy, chains: 16, steps: 100, tau: 0.01}\n"
    )
    folder = write_tiny(tmp_path / "bundle", settings=text)
    slow = bundles.load(folder)
    with nodes(cluster, 2), served(cluster, folder, slow, least=1, most=2) as door:
        assert door.backend.count == 1
        stop = threading.Event()

        def client(number: int) -> None:
            while not stop.is_set():
                ask(door.url, "slow", seed=number)

        with ThreadPoolExecutor(12) as pool:
            for number in range(12):
                pool.submit(client, number)
            try:
                until(lambda: door.backend.count == 2, "a second replica")
            finally:
                stop.set()


def test_chains_of_one_request_run_on_both(cluster: Cluster, tmp_path: Path) -> None:
    text = "default: many\ncaps: {chains: 96, steps: 4}\nsettings:\n" + (
        "  many: {dynamics: langevin, network: score, chains: 96, steps: 4, tau: 0.05}\n"
    )
    folder = write_tiny(tmp_path / "bundle", settings=text)
    many = bundles.load(folder)
    bodies = []
    for count in (1, 2):
        with nodes(cluster, count), served(cluster, folder, many, least=count, most=count) as door:
            answer = ask(door.url, "many")
            assert answer.status_code == 200
            bodies.append(answer.json())
    one, two = bodies
    assert one["chains"] == two["chains"] == 96
    assert one["label"] == two["label"]
    assert one["margin"]["value"] == pytest.approx(two["margin"]["value"], rel=1e-4, abs=1e-5)
    assert one["margin"]["standard_error"] == pytest.approx(two["margin"]["standard_error"], rel=1e-3)


def test_a_machine_with_another_bundle_is_not_served(
    cluster: Cluster, tiny_folder: Path, tiny: Bundle
) -> None:
    plan = ray_serve.Plan(str(tiny_folder), "0" * 64, "torch", resources={"replica": 1})
    with nodes(cluster, 1):
        assert "another bundle on this machine" in failure(plan, tiny, cluster.address)
        took_away(cluster)


def failure(plan: ray_serve.Plan, bundle: Bundle, address: str | None) -> str:
    """What a door says that cannot be ready."""

    async def start() -> None:
        life = Deployed(plan, bundle, Metrics(CollectorRegistry()), address)
        async with life, asyncio.timeout(PATIENCE):
            await life.until_ready()

    with pytest.raises(Failed) as failed:
        asyncio.run(start())
    return str(failed.value)


def took_away(cluster: Cluster) -> None:
    ray_cluster.connect(cluster.address)
    ray_cluster.remove()
    ray_cluster.disconnect()


def test_a_second_door_leaves_what_is_there_and_refuses_another_plan(
    cluster: Cluster, tiny_folder: Path, tiny: Bundle
) -> None:
    with nodes(cluster, 2), served(cluster, tiny_folder, tiny) as door:
        names = {state["name"] for state in door.backend._states}
        plan = ray_serve.Plan(
            str(tiny_folder), tiny.digest, "torch", allow_seed=True, resources={"replica": 1}
        )
        second = ray_cluster.deploy(plan)
        found = asyncio.run(_looked(second))
        assert {state["name"] for _, state in found} == names
        with pytest.raises(RuntimeError, match="another bundle or other options"):
            ray_cluster.deploy(dataclasses.replace(plan, allow_seed=False))
        assert ask(door.url).status_code == 200


async def _looked(handles: ray_serve.Handles) -> Any:
    return await handles.look()


def test_a_start_for_which_there_is_no_room_can_be_stopped(
    cluster: Cluster, tiny_folder: Path, tiny: Bundle
) -> None:
    """No node has what the replica asks for, and one may come: it waits, and ends when it is told to."""
    plan = ray_serve.Plan(str(tiny_folder), tiny.digest, "torch", resources={"replica": 1})

    async def start() -> float:
        life = Deployed(plan, tiny, Metrics(CollectorRegistry()), cluster.address)
        async with life:
            waiting = asyncio.create_task(life.until_ready())
            await asyncio.sleep(5)
            assert not waiting.done()
            waiting.cancel()
            began = time.monotonic()
        return time.monotonic() - began

    assert asyncio.run(start()) < 60
    took_away(cluster)


def test_a_machine_without_the_gpus_says_so(tiny_folder: Path, tiny: Bundle) -> None:
    plan = ray_serve.Plan(str(tiny_folder), tiny.digest, "torch", gpus=64)
    assert "64 GPUs are asked for" in failure(plan, tiny, None)


def test_the_door_is_an_ingress_too(tiny_folder: Path, tiny: Bundle) -> None:
    """What a RayService imports, behind a proxy of Ray Serve."""
    port = free_port()
    ray_cluster.connect(None, 3)
    try:
        ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
        ray.serve.run(ray_serve.application({"bundle": str(tiny_folder), "runner": "torch"}), name="app")
        url = f"http://127.0.0.1:{port}"
        until(lambda: httpx.get(url + "/readyz", trust_env=False).status_code == 200, "readiness")
        answer = httpx.post(url + "/classify", content=png(), timeout=PATIENCE, trust_env=False)
        assert answer.status_code == 200
        assert answer.json()["model"]["digest"] == tiny.digest
        meta = httpx.get(url + "/v2/models/tiny", trust_env=False)
        assert meta.status_code == 200
        wrong = httpx.post(url + "/classify", content=b"no image", timeout=PATIENCE, trust_env=False)
        assert wrong.json()["error"]["code"] == "unsupported_image"
    finally:
        ray_cluster.remove()
        ray_cluster.disconnect()


@pytest.mark.parametrize(
    "wrong", [{"bundle": "cifar10", "colour": "red"}, {"replicas": "3:1"}, {"cpus": "x"}]
)
def test_arguments_of_the_application_are_checked(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"arguments|replicas|float"):
        ray_serve.application(wrong)


def test_the_command_serves_and_leaves_nothing(tiny_folder: Path) -> None:
    ports = ["--port", str(free_port()), "--metrics-port", str(free_port())]
    command = [sys.executable, "-m", "metastable", "serve", "--engine", "ray", "--check"]
    before_it = {one.pid for one in psutil.process_iter()}
    done = subprocess.run(
        [*command, "--bundle", str(tiny_folder), "--runner", "torch", *ports],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check: 200" in done.stdout
    assert done.stdout.rstrip().endswith("stopped")

    def left() -> list[str]:
        return [
            one.name() for one in psutil.process_iter() if one.pid not in before_it and "ray" in one.name()
        ]

    until(lambda: not left(), "the end of the cluster")
