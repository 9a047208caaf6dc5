"""The container: what it is built of, and its life from the build to a stop in order."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from export import mar
from tests.launched import PATIENCE, REPOSITORY, free_port
from tests.serving.door.conftest import png
from tests.test_project import pins

FOLDER = REPOSITORY / "deploy" / "container"
BUILT = FOLDER / "built"
KEY = "a-key-that-stands-nowhere-in-the-image"
UNWANTED = {"setuptools", "openvino-telemetry"}
"""PyTorch wants the first to compile; the second reports use to its makers."""


def test_its_packages_are_those_of_the_lock_and_whole() -> None:
    pinned, locked = pins(FOLDER / "requirements.txt"), pins(REPOSITORY / "requirements.lock")
    assert {name: locked[name] for name in pinned} == pinned
    for name in pinned:
        for text in requires(name) or []:
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                assert canonicalize_name(one.name) in pinned.keys() | UNWANTED, f"{one} of {name}"


def test_what_the_builder_is_given_holds_no_secret() -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line for line in ignored if line and line[0] not in "#!"] == ["*", "**/__pycache__"]
    copied = [line.split() for line in (FOLDER / "Dockerfile").read_text().splitlines() if "COPY" in line[:4]]
    sources = {word for words in copied for word in words[1:-1] if not word.startswith("--")}
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    given = sources - {"/opt/metastable", "${ARCHIVE}"}
    assert given | {"model_store/*.mar"} == let_in


class Podman:
    """podman with a storage of its own, so that no image of this machine is touched."""

    def __init__(self, folder: Path) -> None:
        # Not beside the tests' other files: sockets in it have long names.
        self.storage = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]
        self.storage += ["--cgroup-manager", "cgroupfs", "--events-backend", "file"]

    def __call__(self, *words: str, check: bool = True) -> str:
        command = ["podman", *self.storage, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if check and done.returncode:
            pytest.fail(f"{' '.join(words[:2])}: {done.stderr[-3000:]}")
        return done.stdout.strip()


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed: apt-get install podman")
    if not (BUILT / "base.tar").is_file() or not (BUILT / "wheels").is_dir():
        pytest.skip("what it is built of is not here: run deploy/container/prepare --base")
    folder = tmp_path_factory.mktemp("podman")
    one = Podman(folder)
    try:
        one("import", str(BUILT / "base.tar"), "localhost/metastable-base")
        yield one
    finally:
        one("rm", "--all", "--force", "--time", "0", check=False)
        one("rmi", "--all", "--force", check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(podman: Podman, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Built from a copy of what is copied, with a small model."""
    context = tmp_path_factory.mktemp("context")
    for name in ("metastable", "deploy"):
        unneeded = shutil.ignore_patterns("__pycache__", "base.tar")
        shutil.copytree(REPOSITORY / name, context / name, ignore=unneeded, copy_function=os.link)
    (context / "samples").mkdir()
    shutil.copy(REPOSITORY / "samples" / "cat.png", context / "samples")
    (context / "keys").write_text(KEY)  # beside the code, as clumsy people have it
    (context / "model_store").mkdir()
    mar.build(tiny_folder, REPOSITORY / "model-config.yaml", context / "model_store" / "tiny.mar")
    dockerfile = str(context / "deploy" / "container" / "Dockerfile")
    options = ["--isolation", "chroot", "--format", "docker", "--layers=false"]
    options += ["--ignorefile", f"{dockerfile}.dockerignore", "--build-arg", "ARCHIVE=model_store/tiny.mar"]
    podman("build", *options, "--file", dockerfile, "--tag", "localhost/metastable", str(context))
    return "localhost/metastable"


def hardening(keys: Path) -> list[str]:
    """What compose.yaml says, as options of `podman run`."""
    service: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["metastable"]
    assert service["read_only"]
    options = ["--read-only", "--user", service["user"], "--memory", service["mem_limit"]]
    options += ["--pids-limit", str(service["pids_limit"]), "--volume", f"{keys}:/run/secrets/keys:ro"]
    for name, limit in service["ulimits"].items():
        options += ["--ulimit", f"{name}={limit['soft']}:{limit['hard']}"]
    for flag, key in (("--cap-drop", "cap_drop"), ("--security-opt", "security_opt"), ("--tmpfs", "tmpfs")):
        for value in service[key]:
            options += [flag, value]
    return options


def runtime(podman: Podman, image: str) -> list[str]:
    """The options for a runtime that works here: crun does not know every machine's control groups."""
    reasons = []
    for name in ("crun", "runc"):
        if (path := shutil.which(name)) is not None:
            command = ["podman", *podman.storage, "--runtime", path, "run", "--rm", "--network", "none"]
            command += ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
            command += ["--entrypoint", "/bin/true", image]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                return ["--runtime", path]
            reasons.append(done.stderr.strip()[-200:])
    pytest.skip(f"no runtime can start a container here: {reasons}")


@contextmanager
def started(podman: Podman, image: str, keys: Path) -> Iterator[tuple[str, str]]:
    """A container under compose.yaml's restrictions: its name, and the door's address."""
    podman.storage += runtime(podman, image)
    port = free_port()
    publish = ["--publish", f"127.0.0.1:{port}:8080"]
    name = podman("run", "--detach", *hardening(keys), *publish, image)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False, timeout=5).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        alive = podman("inspect", name, "--format", "{{.State.Running}}") == "true"
        assert alive, podman("logs", name)
        assert time.monotonic() < until
        time.sleep(0.5)
    yield name, url


@pytest.mark.server
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give the keys to the user of the container")
def test_it_is_built_serves_and_ends(podman: Podman, image: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"me:{KEY}\n")
    keys.chmod(0o600)
    os.chown(keys, 10001, 10001)
    with started(podman, image, keys) as (name, url):
        known = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(
            f"{url}/classify", content=png(), headers=known, trust_env=False, timeout=PATIENCE
        )
        assert answer.json()["model"]["name"] == "tiny"
        assert httpx.post(f"{url}/classify", content=png(), trust_env=False).status_code == 401
        podman("healthcheck", "run", name)
        status = podman("exec", name, "cat", "/proc/1/status")
        assert "Uid:\t10001\t10001\t10001\t10001" in status
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert podman("exec", name, "touch", "/opt/metastable/app/x", check=False) == ""
        assert "x" not in podman("exec", name, "ls", "/opt/metastable/app").split()
        podman("kill", "--signal", signal.Signals.SIGTERM.name, name)
        assert podman("wait", name) == "0"
        assert podman("logs", name).endswith("stopped")
    told = json.dumps([podman("history", "--no-trunc", image), podman("inspect", image)])
    assert KEY not in told
    limits = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
    script = f"test -d /opt/metastable && ! grep -rlF {KEY} /opt /etc /home /root /srv"
    search = ["--network", "none", *limits, "--user", "0", "--entrypoint", "sh", image, "-c", script]
    podman("run", "--rm", *search)
