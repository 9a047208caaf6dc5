"""The manifests of KubeRay and KServe: as their schemas have them, closed, and true to the server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from deploy import engines, serve
from deploy.front import DRAIN_SECONDS
from metastable import console
from metastable.serving.door.access import FREE
from tests.deploy.custom import FOLDER, KINDS, custom, documents, pods
from tests.launched import REPOSITORY

SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parent / "schemas" / "custom.json").read_text())
ENDING = 5.0
"""Seconds beside those of the drain."""


def validator(kind: str) -> Any:
    return jsonschema_rs.Draft202012Validator(SCHEMAS | {"$ref": f"#/$defs/{kind}"})


@pytest.fixture
def cluster() -> dict[str, Any]:
    found: dict[str, Any] = custom("RayService")["spec"]["rayClusterConfig"]
    return found


@pytest.fixture
def predictor() -> dict[str, Any]:
    found: dict[str, Any] = custom("InferenceService")["spec"]["predictor"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_fit_their_schemas(kind: str) -> None:
    assert [str(error) for error in validator(kind).iter_errors(custom(kind))] == []


def _workers(one: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = one["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    return found


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("RayService", lambda one: one.update(apiVersion="ray.io/v1alpha1")),
        ("RayService", lambda one: one["spec"].update(serveConfig={})),
        ("RayService", lambda one: one["spec"].update(serveConfigV2={"applications": []})),
        ("RayService", lambda one: one["spec"]["rayClusterConfig"].pop("headGroupSpec")),
        ("RayService", lambda one: _workers(one).pop("groupName")),
        ("RayService", lambda one: _workers(one).update(minReplicas="2")),
        ("RayService", lambda one: _workers(one)["rayStartParams"].update({"num-cpus": 2})),
        ("RayService", lambda one: _workers(one)["template"]["spec"].pop("containers")),
        ("InferenceService", lambda one: one["spec"]["predictor"].update(minReplica=2)),
        ("InferenceService", lambda one: one["spec"]["predictor"].update(maxReplicas=-1)),
        ("InferenceService", lambda one: one["spec"]["predictor"].update(scaleMetric="backlog")),
        ("InferenceService", lambda one: one["spec"]["predictor"].pop("containers")),
        ("InferenceService", lambda one: one["metadata"].update(name="Metastable")),
    ],
)
def test_the_schemas_refuse_what_the_operators_would(
    kind: str, spoil: Callable[[dict[str, Any]], object]
) -> None:
    spoil(one := custom(kind))
    assert not validator(kind).is_valid(one)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_pod_is_open(kind: str) -> None:
    for pod in pods(custom(kind)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["terminationGracePeriodSeconds"] >= DRAIN_SECONDS + ENDING
        for one in [*pod["containers"], *pod.get("initContainers", [])]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(one["resources"]["requests"])
            assert "memory" in one["resources"]["limits"]
        for one in pod["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= set(one)
        mounted = {one["name"] for one in pod["volumes"]}
        assert {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]} <= mounted


@pytest.mark.parametrize("name", ["ray-service.yaml", "inference-service.yaml"])
def test_no_secret_lies_in_a_manifest(name: str) -> None:
    found = documents(FOLDER / name)
    assert "Secret" not in {one["kind"] for one in found}
    given = {env["name"] for one in found if one["kind"] in KINDS for pod in pods(one) for env in _env(pod)}
    assert given <= {"HOME", "RAY_USAGE_STATS_ENABLED", "PROTOCOL"}


def _env(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [env for one in pod["containers"] for env in one.get("env", [])]


def test_ray_serves_our_application_on_workers_alone(cluster: dict[str, Any]) -> None:
    config = yaml.safe_load(custom("RayService")["spec"]["serveConfigV2"])
    [application] = config["applications"]
    assert application["import_path"] == "deploy.ray_serve:application"
    assert application["route_prefix"] == "/"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [workers] = cluster["workerGroupSpecs"]
    [worker] = workers["template"]["spec"]["containers"]
    assert workers["rayStartParams"]["num-cpus"] == worker["resources"]["requests"]["cpu"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    ports = {one["name"]: one["containerPort"] for one in worker["ports"]}
    assert ports["serve"] == config["http_options"]["port"]
    assert f'"{ports["serve"]}/-/healthz"' in worker["readinessProbe"]["exec"]["command"][-1]


def test_programs_of_probes_are_python(cluster: dict[str, Any]) -> None:
    found = [
        one[probe]["exec"]["command"]
        for pod in pods(custom("RayService"))
        for one in pod["containers"]
        for probe in ("readinessProbe", "livenessProbe")
    ]
    assert len(found) == 4
    for interpreter, option, program in found:
        assert (interpreter, option) == ("python", "-c")
        compile(program, "probe", "exec")


def test_only_the_operator_reaches_rays_dashboard(cluster: dict[str, Any]) -> None:
    [policy] = [one for one in documents(FOLDER / "ray-service.yaml") if one["kind"] == "NetworkPolicy"]
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == labels
    [dashboard] = [
        one["containerPort"]
        for one in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
        if one["name"] == "dashboard"
    ]
    from_outside = [rule for rule in policy["spec"]["ingress"] if "namespaceSelector" in rule["from"][0]]
    reach = [
        rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for rule in from_outside
        if dashboard in [port["port"] for port in rule["ports"]]
    ]
    assert reach == ["kuberay-operator"]


def test_ray_is_the_pinned_one(cluster: dict[str, Any]) -> None:
    pins = REPOSITORY / "requirements-ray.txt"
    [version] = re.findall(r"^ray==(\S+)$", pins.read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == version
    assert re.search(r"^(def )?application\b", (REPOSITORY / "deploy/ray_serve.py").read_text(), re.MULTILINE)


def test_kserve_starts_the_launcher_and_asks_it_by_the_protocol(predictor: dict[str, Any]) -> None:
    [container] = predictor["containers"]
    assert container["name"] == "kserve-container"
    parser = console.Parser(prog="serve")
    serve.fill(parser)
    chosen = console.parse(parser, ["--engine=local", *container["args"]])
    engines.check(chosen, parser)
    assert chosen.keys is not None
    [port] = [one["containerPort"] for one in container["ports"]]
    assert port == chosen.port
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in FREE
        assert asked["path"].startswith("/v2/")
        assert asked["port"] == port
    assert {one["name"]: one["value"] for one in container["env"]} == {"PROTOCOL": "v2"}
    assert predictor["annotations"]["prometheus.io/port"] == str(chosen.metrics_port)
    assert predictor["minReplicas"] <= predictor["maxReplicas"]
