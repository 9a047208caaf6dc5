"""The command `metastable` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds; a busy machine is slow


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "metastable", *map(str, words)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "METASTABLE_DATA"} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
