"""The runner of a worker: by the name in model-config.yaml, on the artifacts in the archive."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from metastable.bundle import Bundle
from metastable.engine import assembly
from metastable.engine.runners import Runner
from metastable.engine.runners.artifacts import Artifacts


def runner_for(bundle: Bundle, artifacts: Artifacts, name: str, threads: int) -> Runner:
    """The runner that the operator asked for; what `auto` finds is kept where METASTABLE_RUNNER_CACHE says.

    Raises what `choose.make` raises.
    """
    path = os.environ.get("METASTABLE_RUNNER_CACHE")
    cache = _read(Path(path)) if path else {}
    before = dict(cache)
    runner = assembly.runner_for(bundle, name, artifacts=artifacts, threads=threads, cache=cache)
    if path and cache != before:
        with contextlib.suppress(OSError):  # only a saving of time is lost
            Path(path).write_text(json.dumps(cache))
    return runner


def _read(path: Path) -> dict[str, str]:
    """A cache file; anything that is not one counts as empty."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
