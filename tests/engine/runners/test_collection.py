"""The tests that a GPU needs are collected where the CPU's runtimes are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BLOCKED = """
import sys

import pytest

sys.modules |= dict.fromkeys(["openvino", "onnx", "onnxruntime"])  # None: as if not installed
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_cuda_tests_need_neither_openvino_nor_onnx(root: Path) -> None:
    wanted = ["tests/engine/runners/test_parity.py", "tests/engine/runners/test_cuda_runner.py"]
    wanted += ["tests/test_cuda_noise.py", "tests/benchmarks/gpu"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *wanted], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert all(f"{path}" in done.stdout for path in wanted)
