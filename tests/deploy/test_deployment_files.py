"""The unit, the manifests, the compose file and the Dockerfile: well formed, closed, true to the launcher."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import engines, serve
from deploy.front import DRAIN_SECONDS
from metastable import console
from metastable.serving.door.access import FREE
from metastable.serving.door.limits import Limits
from tests.deploy import custom
from tests.launched import REPOSITORY

FILES = REPOSITORY / "deploy"
UNIT = FILES / "systemd" / "metastable.service"
MANIFESTS = sorted((FILES / "kubernetes").glob("*.yaml"))
ENDING = 5.0
"""Seconds beside those of the drain."""


def documents(name: str) -> dict[str, Any]:
    """The documents of a file, by kind."""
    found = yaml.safe_load_all((FILES / "kubernetes" / name).read_text())
    return {one["kind"]: one for one in found}


@pytest.fixture
def pod() -> Any:
    return documents("metastable.yaml")["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def service() -> Any:
    return yaml.safe_load((FILES / "container" / "compose.yaml").read_text())["services"]["metastable"]


def instruction(name: str) -> list[str]:
    """The words of the Dockerfile's last instruction of that name, which is a list in JSON."""
    text = (FILES / "container" / "Dockerfile").read_text().replace("\\\n", " ")
    words = yaml.safe_load(re.findall(rf"^{name} (.*)$", text, re.MULTILINE)[-1])
    assert isinstance(words, list)
    return words


def directive(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_each_starts_the_launcher_with_options_that_it_takes(pod: Any, service: Any) -> None:
    start = instruction("ENTRYPOINT")
    assert start[:3] == ["python", "-m", "deploy.serve"]
    [unit] = directive("ExecStart")
    command = shlex.split(unit)
    assert command[:4] == ["/opt/metastable/.venv/bin/python", "-m", "metastable", "serve"]
    lists = [instruction("CMD"), service["command"], pod["containers"][0]["args"]]
    for words in [command[4:], *(start[3:] + words for words in lists)]:
        parser = console.Parser(prog="serve")
        serve.fill(parser)
        chosen = console.parse(parser, words)
        engines.check(chosen, parser)
        assert chosen.keys is not None


def test_each_waits_for_what_is_under_way(pod: Any, service: Any) -> None:
    least = DRAIN_SECONDS + ENDING
    before = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= least + before
    assert float(service["stop_grace_period"].removesuffix("s")) >= least
    assert float(directive("TimeoutStopSec")[0]) >= least
    assert instruction("ENTRYPOINT")[0] == "python"  # no shell that would keep SIGTERM


def test_each_allows_the_files_that_the_door_wants(service: Any) -> None:
    assert service["ulimits"]["nofile"]["soft"] >= Limits().files
    assert int(directive("LimitNOFILE")[0]) >= Limits().files


def test_nothing_in_a_container_is_open(pod: Any, service: Any) -> None:
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = int(service["user"].partition(":")[0])
    assert user == pod["securityContext"]["runAsUser"] > 0
    for one in [*pod["containers"], *pod["initContainers"]]:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_manifests_name_each_other_rightly(pod: Any) -> None:
    found = documents("metastable.yaml")
    deployment = found["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    ports = {one["name"] for one in pod["containers"][0]["ports"]}
    assert found["Service"]["spec"]["selector"] == labels
    assert {one["targetPort"] for one in found["Service"]["spec"]["ports"]} == ports
    policy = found["NetworkPolicy"]["spec"]
    assert policy["egress"] == []
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports
    for selector in (policy["podSelector"], found["PodDisruptionBudget"]["spec"]["selector"]):
        assert selector["matchLabels"] == labels
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = pod["containers"][0][probe]["httpGet"]
        assert asked["path"] in FREE
        assert asked["port"] in ports
    for name in ("scale-by-cpu.yaml", "scale-by-backlog.yaml"):
        target = documents(name)["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])


@pytest.mark.slow
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_the_schemas_of_kubernetes(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: pip install it")
    known = custom.plain(path)
    (file := tmp_path / path.name).write_text(yaml.safe_dump_all(known))
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert output.count(" passed ") == len(known)


@pytest.mark.slow
def test_the_unit_is_well_formed_and_closed(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    said = subprocess.run([analyze, "--version"], capture_output=True, text=True).stdout
    if int(re.findall(r"\d+", said)[0]) < 250:
        pytest.skip("systemd-analyze is older than 250: it cannot look at a file")
    unit = tmp_path / UNIT.name
    # What is started need not be installed here.
    unit.write_text(UNIT.read_text().replace("/opt/metastable/.venv/bin/python", "/bin/true"))
    environment = os.environ | {"SYSTEMD_LOG_LEVEL": "info"}
    for asked in (["verify"], ["security", "--offline=true", "--threshold=15"]):
        done = subprocess.run([analyze, *asked, str(unit)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Unknown" not in done.stderr
