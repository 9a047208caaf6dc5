"""The script for bash, as bash runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.given import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = run("completion", "bash")
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("completion") / "metastable"
    path.write_text(done.stdout)
    return path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["se"], ["serve"]),
        (["bundle", "che"], ["check"]),
        (["evaluate", "robust", "--bat"], ["--batch"]),
        (["evaluate", "figure", "ly"], ["lyapunov"]),
        (["train", "harden", "--purifier-l"], ["--purifier-lr"]),
        (["bench", "gpu", "lo"], ["loan"]),
    ],
)
def test_bash_completes(script: Path, typed: list[str], offered: list[str]) -> None:
    words = " ".join(("metastable", *typed))
    code = f"""source '{script}'
COMP_WORDS=({words}); COMP_CWORD={len(typed)}
$(complete -p metastable | sed 's/.*-F \\([^ ]*\\).*/\\1/') metastable '{typed[-1]}' 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    code = code.replace("$(complete", "f=$(complete").replace(".*/\\1/')", ".*/\\1/'); $f")
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == offered, done.stderr
