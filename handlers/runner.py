"""The runner of a worker: by the name in model-config.yaml, on the artifacts in the archive."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import torch

from metastable.bundle import Bundle
from metastable.engine.runners import Runner, choose
from metastable.engine.runners.artifacts import SUFFIXES, Artifacts


def artifacts_in(folder: Path) -> Artifacts:
    """The artifacts in a folder by kind and name; none if it is not there."""
    return {
        kind: {path.stem: path.read_bytes() for path in sorted((folder / kind).glob(f"*{suffix}"))}
        for kind, suffix in SUFFIXES.items()
    }


def runner_for(bundle: Bundle, artifacts: Artifacts, name: str, threads: int) -> Runner:
    """The runner that the operator asked for; what `auto` finds is kept where METASTABLE_RUNNER_CACHE says.

    Raises what `choose.make` raises.
    """
    parts = choose.Parts(
        bundle.networks, bundle.classifier, artifacts, bundle.shape, threads=threads, digest=bundle.digest
    )
    kinds = [setting.dynamics.kind for setting in bundle.settings.by_name.values()]
    if name == choose.AUTO and any(kind is not None and kind.differentiates for kind in kinds):
        name = "torch"  # the only one with derivatives of a score
    path = os.environ.get("METASTABLE_RUNNER_CACHE")
    cache = _read(Path(path)) if path else {}
    before = dict(cache)
    runner = choose.make(name, parts, cache)
    maker = choose.MAKERS.get(runner.name)
    if maker is not None and maker.package != "torch":
        # PyTorch's threads wait for work by spinning, on the cores that the runtime's own threads need:
        # with two cores that doubled the time of a request.
        torch.set_num_threads(1)
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
