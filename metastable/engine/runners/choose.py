"""A runner by name, or the fastest that is there.

Optional runtimes are imported only when their runner is asked for.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metastable.engine.runners import Runner
from metastable.errors import EngineFailure, MissingPackage, SettingsError

log = logging.getLogger(__name__)

AUTO = "auto"
CANDIDATES = ("openvino", "onnx", "torch")
"""What `auto` chooses from: runners that give float32 answers, so that the choice changes only speed."""
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
PROBE = 8  # chains in the batch that is timed: about a segment of work on two cores
REPEATS = 5


@dataclass(frozen=True)
class Parts:
    """What runners are made of.

    Attributes:
        networks: the purifying networks by name; each has a method `score`.
        classifier: images to logits.
        graphs: the same as ONNX models (`export.graphs`), or empty if nobody exported them.
        shape: (C, H, W) of images.
        threads: of the runner; 0 takes all cores.
        digest: of the bundle; the key under which a choice is remembered.
    """

    networks: Mapping[str, nn.Module]
    classifier: nn.Module
    graphs: Mapping[str, bytes]
    shape: tuple[int, int, int]
    threads: int = 0
    digest: str = ""


def _torch(parts: Parts) -> Runner:
    from metastable.engine.runners.torch_runner import TorchRunner

    return TorchRunner(parts.networks, parts.classifier)


def _openvino(parts: Parts) -> Runner:
    from metastable.engine.runners.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(parts.graphs, threads=parts.threads)


def _bf16(parts: Parts) -> Runner:
    from metastable.engine.runners.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(parts.graphs, precision="bf16", threads=parts.threads)


def _onnx(parts: Parts) -> Runner:
    from metastable.engine.runners.onnx_runner import OnnxRunner

    return OnnxRunner(parts.graphs, threads=parts.threads)


MAKERS: dict[str, Callable[[Parts], Runner]] = {
    "torch": _torch,
    "openvino": _openvino,
    "openvino-bf16": _bf16,
    "onnx": _onnx,
}
NAMES = (AUTO, *MAKERS)


def missing(name: str, parts: Parts) -> str | None:
    """Why the runner of this name cannot be made here, with what to do; None if it can."""
    package = PACKAGES.get(name.partition("-")[0])
    if package is None:
        return None
    if importlib.util.find_spec(package) is None:
        return f"runner {name} needs the package {package}: install it, or choose another runner"
    if not parts.graphs:
        return f"runner {name} needs exported graphs: build the archive with `make archive`"
    return None


def make(name: str, parts: Parts, cache: MutableMapping[str, str] | None = None) -> Runner:
    """The runner of a name in NAMES.

    `auto` times an update of every candidate that is there on PROBE chains; with a `cache` (the caller
    may keep it in a file) the choice is remembered for this bundle.

    Raises:
        SettingsError: there is no runner of this name.
        MissingPackage: its runtime is not installed, or nothing was exported for it.
        EngineFailure: `auto` found none that runs the bundle.
    """
    if name not in NAMES:
        raise SettingsError(f"runner must be one of {', '.join(NAMES)}, not {name!r}")
    if name != AUTO:
        if reason := missing(name, parts):
            raise MissingPackage(reason)
        return MAKERS[name](parts)
    known = [candidate for candidate in CANDIDATES if missing(candidate, parts) is None]
    key = f"{parts.digest} {parts.threads} {torch.__version__} {' '.join(known)}"
    if cache is not None and cache.get(key) in known:
        return MAKERS[cache[key]](parts)
    made: dict[str, Runner] = {}
    seconds: dict[str, float] = {}
    for candidate in known:
        try:
            made[candidate] = MAKERS[candidate](parts)
            seconds[candidate] = _seconds(made[candidate], parts)
        except Exception as error:
            # A network that somebody brought may use operators that a runtime lacks; others have them.
            log.warning("runner %s cannot run this bundle: %s", candidate, error)
    if not seconds:
        raise EngineFailure("no runner can run this bundle: the log says why")
    best = min(seconds, key=lambda candidate: seconds[candidate])
    if cache is not None:
        cache[key] = best
    return made[best]


def _seconds(runner: Runner, parts: Parts) -> float:
    """The least time of a score of every network and a classification of PROBE images."""
    x = torch.rand(PROBE, *parts.shape)

    def work() -> Any:
        return [runner.score(network, x) for network in parts.networks], runner.classify(x)

    work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
