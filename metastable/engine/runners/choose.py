"""A runner by name, or the fastest that is there.

Optional runtimes are imported only when their runner is asked for.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metastable.engine.precision import Precision
from metastable.engine.runners import Runner
from metastable.engine.runners.artifacts import EIGHT, GRAPHS, PACKAGES, Artifacts
from metastable.errors import EngineFailure, MissingPackage, SettingsError

log = logging.getLogger(__name__)

AUTO = "auto"
GPU = "cuda"
CANDIDATES = ("openvino", "onnx", "torch")
"""What `auto` chooses from: runners that give float32 answers, so that the choice changes only speed.

Those that are mostly faster come first: where networks are so slow that time runs out, the last are left.
"""
PROBE = 8  # images in the batch that is timed; one where eight take too long
REPEATS = 5
BUDGET = 8.0  # seconds that `auto` may take, beyond two runs of one candidate


@dataclass(frozen=True)
class Parts:
    """What runners are made of.

    Attributes:
        networks: the purifying networks by name; each has a method `score`.
        classifier: images to logits.
        artifacts: what was exported of the same, by kind and name; empty if nothing was.
        shape: (C, H, W) of images.
        threads: of the runner; 0 takes all cores.
        digest: of the bundle; the key under which a choice is remembered.
    """

    networks: Mapping[str, nn.Module]
    classifier: nn.Module
    artifacts: Artifacts
    shape: tuple[int, int, int]
    threads: int = 0
    digest: str = ""


def _torch(parts: Parts, files: Mapping[str, bytes], precision: Precision) -> Runner:
    from metastable.engine.runners.torch_runner import TorchRunner

    return TorchRunner(parts.networks, parts.classifier, precision=precision)


def _openvino(parts: Parts, files: Mapping[str, bytes], precision: Precision) -> Runner:
    from metastable.engine.runners.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(files, precision=precision, threads=parts.threads)


def _cuda(parts: Parts, files: Mapping[str, bytes], precision: Precision) -> Runner:
    from metastable.engine.runners.cuda_runner import CudaRunner

    return CudaRunner(parts.networks, parts.classifier, precision="bf16" if precision == "bf16" else "tf32")


def _cuda_f16(parts: Parts, files: Mapping[str, bytes], precision: Precision) -> Runner:
    from metastable.engine.runners.cuda_runner import CudaRunner

    return CudaRunner(parts.networks, parts.classifier, precision="f16")


def _onnx(parts: Parts, files: Mapping[str, bytes], precision: Precision) -> Runner:
    from metastable.engine.runners.onnx_runner import OnnxRunner

    return OnnxRunner(files, precision=precision, threads=parts.threads)


def _aot(parts: Parts, files: Mapping[str, bytes], precision: Precision) -> Runner:
    from metastable.engine.runners.aot_runner import AotRunner

    return AotRunner(files)


@dataclass(frozen=True)
class Maker:
    """How a runner is made that can be asked for.

    Attributes:
        make: from its parts, the files of `artifact`, and `precision`.
        package: that must be installed.
        artifact: the kind of exported files that it reads (`artifacts.SUFFIXES`).
        gpu: whether it needs one.
    """

    make: Callable[[Parts, Mapping[str, bytes], Precision], Runner]
    package: str = "torch"
    artifact: str | None = None
    precision: Precision = "f32"
    gpu: bool = False


MAKERS: dict[str, Maker] = {
    "torch": Maker(_torch),
    "torch-bf16": Maker(_torch, precision="bf16"),
    "openvino": Maker(_openvino, "openvino", GRAPHS),
    "openvino-bf16": Maker(_openvino, "openvino", GRAPHS, "bf16"),
    "openvino-int8": Maker(_openvino, "openvino", EIGHT, "int8"),
    "onnx": Maker(_onnx, "onnxruntime", GRAPHS),
    "onnx-int8": Maker(_onnx, "onnxruntime", EIGHT, "int8"),
    "aot": Maker(_aot, artifact=PACKAGES),
    "cuda": Maker(_cuda, "triton", gpu=True),
    "cuda-bf16": Maker(_cuda, "triton", precision="bf16", gpu=True),
    "cuda-f16": Maker(_cuda_f16, "triton", gpu=True),
}
"""The runners by name; a new one is one file, and a function and a row here."""


def artifact_of(name: str) -> str | None:
    """The kind of exported files that the runner of this name, or of `auto`, reads; None if it needs none.

    Raises SettingsError if there is no runner of this name.
    """
    if name == AUTO:
        return GRAPHS
    if name not in MAKERS:
        raise SettingsError(f"runner must be one of {', '.join((AUTO, *MAKERS))}, not {name!r}")
    return MAKERS[name].artifact


def missing(name: str, parts: Parts) -> str | None:
    """Why the runner of this name cannot be made here, with what to do; None if it can."""
    maker = MAKERS[name]
    if maker.gpu and not torch.cuda.is_available():
        return f"runner {name} needs a GPU that PyTorch can use: choose another runner"
    if importlib.util.find_spec(maker.package) is None:
        return f"runner {name} needs the package {maker.package}: install it, or choose another runner"
    if maker.artifact and not parts.artifacts.get(maker.artifact):
        return (
            f"runner {name} needs artifact {maker.artifact}, which is not here: give metastable.load "
            "the folder of `export all` as artifacts=; a server's archive gets it where model-config.yaml "
            "names the runner and `make archive` is run"
        )
    return None


def make(
    name: str,
    parts: Parts,
    cache: MutableMapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Runner:
    """The runner of this name.

    `auto` takes `cuda` where it can be made and runs the bundle; else it times an update of every candidate
    that is there, within BUDGET seconds of `clock`; with a `cache` (the caller may keep it in a file) the
    choice is remembered for this bundle.

    Raises:
        SettingsError: there is no runner of this name.
        MissingPackage: its runtime is not installed, or nothing was exported for it.
        EngineFailure: `auto` found none that runs the bundle.
    """
    artifact_of(name)
    gpu = name == AUTO and torch.cuda.is_available() and missing(GPU, parts) is None
    if gpu and (tried := _tried(GPU, parts, math.inf, clock)) is not None:
        return tried[0]
    if name != AUTO:
        if reason := missing(name, parts):
            raise MissingPackage(reason)
        return _made(name, parts)
    known = [candidate for candidate in CANDIDATES if missing(candidate, parts) is None]
    key = f"{parts.digest} {parts.threads} {torch.__version__} {' '.join(known)}"
    if cache is not None and cache.get(key) in known:
        return _made(cache[key], parts)
    made: dict[str, Runner] = {}
    seconds: dict[str, float] = {}
    ends = clock() + BUDGET
    for number, candidate in enumerate(known):
        if made and clock() >= ends:
            log.info("auto did not try %s: others took all its time", ", ".join(known[number:]))
            break
        budget = max(ends - clock(), 0.0) / (len(known) - number)
        if (tried := _tried(candidate, parts, budget, clock)) is not None:
            made[candidate], seconds[candidate] = tried
    if not seconds:
        raise EngineFailure("no runner can run this bundle: the log says why")
    best = min(seconds, key=lambda candidate: seconds[candidate])
    if cache is not None:
        cache[key] = best
    return made[best]


def _made(name: str, parts: Parts) -> Runner:
    maker = MAKERS[name]
    return maker.make(parts, parts.artifacts[maker.artifact] if maker.artifact else {}, maker.precision)


def _tried(name: str, parts: Parts, budget: float, clock: Callable[[], float]) -> tuple[Runner, float] | None:
    """The runner of this name and its `_seconds`; None, with a warning, if it cannot run the bundle.

    A network that somebody brought may use operators that a runtime lacks; others have them.
    """
    try:
        runner = _made(name, parts)
        return runner, _seconds(runner, parts, budget, clock)
    except Exception as error:
        log.warning("runner %s cannot run this bundle: %s", name, error)
        return None


def _seconds(runner: Runner, parts: Parts, budget: float, clock: Callable[[], float]) -> float:
    """The least time an image of a score of every network and a classification, in about `budget` seconds.

    Of a batch of PROBE images, or of one image where two such batches do not fit.  The first run, which may
    compile graphs, does not count.
    """
    ends = clock() + budget

    def spent(x: Tensor) -> float:
        started = clock()
        for network in parts.networks:
            runner.score(network, x)
        runner.classify(x)
        return clock() - started

    x = torch.rand(1, *parts.shape)
    spent(x)
    times = [spent(x)]
    if clock() + 2 * PROBE * times[0] <= ends:
        x, times = torch.rand(PROBE, *parts.shape), []
        spent(x)
    while len(times) < REPEATS and (not times or clock() + times[-1] <= ends):
        times.append(spent(x))
    return min(times) / len(x)
