"""Stopping the process group, with a shell script in the place of Java."""

import os
import signal
import time
from pathlib import Path

import pytest

from deploy import process
from deploy.process import ServerGroup

STUBBORN = "trap '' TERM\ntouch started\nwhile :; do sleep 1; done"
DIES_FIRST = "sh -c 'trap \"\" TERM; touch started; while :; do sleep 1; done' &\nwait"
OBEDIENT = "touch started\nwhile :; do sleep 1; done"

pytestmark = pytest.mark.timeout(300)


def started(folder: Path, script: str) -> ServerGroup:
    """A group whose Java is `script`, from the moment on that it runs."""
    java = folder / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    group = ServerGroup(
        ["--start", "--foreground", "--model-store", str(folder)],
        folder=folder,
        environment=os.environ | {"JAVA_HOME": str(folder), "TMPDIR": str(folder), "TEMP": str(folder)},
        console=folder / "console.log",
    )
    while not (folder / "started").exists():
        assert group.running(), (folder / "console.log").read_text()
        time.sleep(0.05)
    return group


def test_an_obedient_server_ends_at_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERM_SECONDS", float("inf"))
    group = started(tmp_path, OBEDIENT)
    assert len(group.members()) >= 2
    assert group.stop() == []
    assert group.members() == []


def test_a_stubborn_server_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERM_SECONDS", 0.5)
    group = started(tmp_path, STUBBORN)
    assert group.stop() == []
    assert not group.running()


def test_a_second_request_kills_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERM_SECONDS", float("inf"))  # it would wait for ever
    group = started(tmp_path, STUBBORN)
    assert group.stop(at_once=lambda: True) == []
    assert group.members() == []


def test_workers_that_outlive_the_jvm_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERM_SECONDS", float("inf"))
    group = started(tmp_path, DIES_FIRST)
    assert group.stop() == []
    assert group.members() == []


def test_stopping_a_server_that_is_gone_is_no_error(tmp_path: Path) -> None:
    group = started(tmp_path, OBEDIENT)
    os.killpg(group.pgid, signal.SIGKILL)
    while group.running():
        time.sleep(0.05)
    assert group.stop() == []
