"""Every test has one marker that says what it costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import launched
from tests.conftest import COSTS

LISTS = """
import pytest

class Plugin:
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            print("of", item.nodeid, *(mark.name for mark in item.iter_markers() if mark.name in {costs}))

words = ["--collect-only", "-q", "-p", "no:cacheprovider", *{words}]
raise SystemExit(pytest.main(words, plugins=[Plugin()]))
"""


def collected(
    root: Path, *words: str | Path
) -> tuple[dict[str, list[str]], subprocess.CompletedProcess[str]]:
    """The markers of every collected test, and how pytest ended."""
    script = LISTS.format(costs=set(COSTS), words=[str(word) for word in words])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=launched.PATIENCE
    )
    # Node ids may have spaces; markers have none.
    lines = re.findall(rf"^of (.*?)((?: (?:{'|'.join(COSTS)}))*)$", done.stdout, re.MULTILINE)
    return {node: marks.split() for node, marks in lines}, done


@pytest.mark.slow
def test_every_test_has_exactly_one(root: Path) -> None:
    found, done = collected(root)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(found) > 2000
    assert {node: marks for node, marks in found.items() if len(set(marks)) != 1} == {}
    by = {cost: [node for node, marks in found.items() if cost in marks] for cost in COSTS}
    assert len(by["fast"]) > 1000
    assert {node.partition("::")[0] for node in by["server"]} >= {"tests/test_live.py", "tests/test_soak.py"}
    assert any(node.startswith("tests/test_wheel.py::") for node in by["slow"])


@pytest.mark.slow
def test_a_new_file_is_fast_and_two_markers_are_refused(root: Path, tmp_path: Path) -> None:
    new = tmp_path / "test_new.py"
    new.write_text("def test_of_today():\n    pass\n")
    under = ("--rootdir", root, "-c", root / "pyproject.toml", "-p", "tests.conftest")
    found, done = collected(root, *under, new)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(found.values()) == [["fast"]]
    new.write_text(f"import pytest\npytestmark = pytest.mark.slow\n@pytest.mark.server\n{new.read_text()}")
    found, done = collected(root, *under, new)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_of_today is marked server and slow: leave one of them" in done.stderr + done.stdout


def test_a_server_needs_its_marker(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="mark it `server`"),
        launched.launched(tmp_path, tmp_path / "x.mar"),
    ):
        pass


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs them all")
def test_a_worker_takes_whole_files(request: pytest.FixtureRequest) -> None:
    # How xdist writes a group; with a pytest that it does not know there are none.
    assert request.node.nodeid.endswith("@" + request.path.as_posix())
