"""The runner of a worker: by the name in model-config.yaml, on the graphs in the archive."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import torch

from metastable.bundle import Bundle
from metastable.engine.runners import Runner, choose
from metastable.engine.runners.torch_runner import TorchRunner


def graphs_in(folder: Path) -> dict[str, bytes]:
    """The ONNX graphs in a folder by name; none if it is not there."""
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.onnx"))}


def runner_for(bundle: Bundle, graphs: dict[str, bytes], name: str, threads: int) -> Runner:
    """The runner that the operator asked for; what `auto` finds is kept where METASTABLE_RUNNER_CACHE says.

    Raises what `choose.make` raises.
    """
    parts = choose.Parts(
        bundle.networks, bundle.classifier, graphs, bundle.shape, threads=threads, digest=bundle.digest
    )
    path = os.environ.get("METASTABLE_RUNNER_CACHE")
    cache = _read(Path(path)) if path else {}
    before = dict(cache)
    runner = choose.make(name, parts, cache)
    if not isinstance(runner, TorchRunner):
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
