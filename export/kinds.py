"""The kinds of artifacts: how each is written, judged, and why it may be impossible here."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from export import aot, fused, fused_parity, graphs, openvino_ir, parity, quantise, tensorrt
from metastable.bundle import Bundle
from metastable.engine.runners import Runner, artifacts
from metastable.engine.runners.aot_runner import AotRunner
from metastable.engine.runners.onnx_runner import OnnxRunner
from metastable.engine.runners.openvino_runner import OpenVinoRunner
from metastable.networks.onnx_classifier import OnnxClassifier

Figures = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Materials:
    """What artifacts are made of and judged by.

    Attributes:
        calibration: natural training images [N, C, H, W] in [0, 1] for int8, or None.
        real: natural images [N, C, H, W] to judge by, others than those.
    """

    bundle: Bundle
    calibration: Tensor | None
    real: Tensor

    @functools.cached_property
    def graphs(self) -> dict[str, bytes]:
        return graphs.build(self.bundle)

    @functools.cached_property
    def eight(self) -> dict[str, bytes]:
        assert self.calibration is not None
        return quantise.build(self.bundle, self.calibration)

    @functools.cached_property
    def fused(self) -> dict[str, bytes]:
        return fused.build(self.bundle)

    @functools.cached_property
    def reference(self) -> parity.Reference:
        return parity.Reference(self.bundle, self.real)


@dataclass(frozen=True)
class ArtifactKind:
    """A kind of artifact.

    Attributes:
        dtype: a key of `parity.TOLERANCES`.
        packages: whose versions decide its bytes.
        write: its files into a folder; returns the ONNX graphs that they are of, for the card.
        judge: its figures; None where nothing here can run it.
        missing: why it cannot be made, or None.
    """

    dtype: str
    packages: tuple[str, ...]
    write: Callable[[Materials, Path], Mapping[str, bytes]]
    judge: Callable[[Materials, Path], Figures] | None = None
    missing: Callable[[Materials], str | None] = lambda source: None


def _put(folder: Path, graphs: Mapping[str, bytes], suffix: str) -> Mapping[str, bytes]:
    for name, data in graphs.items():
        (folder / f"{name}{suffix}").write_bytes(data)
    return graphs


def _ir(made: Mapping[str, bytes], folder: Path) -> Mapping[str, bytes]:
    openvino_ir.write(made, folder)
    return made


def _packages(source: Materials, folder: Path) -> Mapping[str, bytes]:
    _put(folder, aot.build(source.bundle), ".pt2")
    return source.graphs


def _engines(source: Materials, folder: Path, precision: str) -> Mapping[str, bytes]:
    made = dict(tensorrt.graphs_of(source.bundle, precision))
    if precision == "float32":
        made |= source.fused
    for name, graph in made.items():
        (folder / f"{name}.engine").write_bytes(tensorrt.build(graph, f"{name} in {precision}"))
    return made


def _with(make: Callable[[Path], Runner]) -> Callable[[Materials, Path], Figures]:
    return lambda source, folder: parity.measure(make(folder), source.reference)


def _read(folder: Path, suffix: str) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.glob(f"*{suffix}"))}


def _xml(folder: Path) -> dict[str, bytes | Path]:
    return {path.stem: path for path in sorted(folder.glob("*.xml"))}


def _no_images(source: Materials) -> str | None:
    if source.calibration is None:
        return (
            "8 bits are calibrated on training images: pass --images or --calibration-data, or set "
            "METASTABLE_DATA"
        )
    return None


def _no_compiler(source: Materials) -> str | None:
    if isinstance(source.bundle.classifier, OnnxClassifier):
        return "the classifier came as an ONNX graph, and AOTInductor compiles PyTorch's modules only"
    if not (shutil.which("g++") or shutil.which("clang++")):
        return "AOTInductor needs a C++ compiler (g++) to build; loading a package needs none"
    return None


KINDS: dict[str, ArtifactKind] = {
    artifacts.GRAPHS: ArtifactKind(
        "float32",
        ("torch", "onnx", "onnxscript"),
        lambda source, folder: _put(folder, source.graphs, ".onnx"),
        _with(lambda folder: OnnxRunner(_read(folder, ".onnx"))),
    ),
    "onnx-steps": ArtifactKind(
        "float32, fused steps",
        ("torch", "onnx", "onnxscript"),
        lambda source, folder: _put(folder, source.fused, ".onnx"),
        lambda source, folder: fused_parity.measure(_read(folder, ".onnx"), source.reference),
    ),
    artifacts.EIGHT: ArtifactKind(
        "int8",
        ("torch", "onnx", "onnxscript", "onnxruntime"),
        lambda source, folder: _put(folder, source.eight, ".onnx"),
        _with(lambda folder: OnnxRunner(_read(folder, ".onnx"), precision="int8")),
        _no_images,
    ),
    "openvino": ArtifactKind(
        "float32",
        ("torch", "onnx", "onnxscript", "openvino"),
        lambda source, folder: _ir(source.graphs, folder),
        _with(lambda folder: OpenVinoRunner(_xml(folder))),
    ),
    "openvino-int8": ArtifactKind(
        "int8",
        ("torch", "onnx", "onnxscript", "onnxruntime", "openvino"),
        lambda source, folder: _ir(source.eight, folder),
        _with(lambda folder: OpenVinoRunner(_xml(folder), precision="int8")),
        _no_images,
    ),
    artifacts.PACKAGES: ArtifactKind(
        "float32",
        ("torch",),
        _packages,
        _with(lambda folder: AotRunner(_read(folder, ".pt2"))),
        _no_compiler,
    ),
    **{
        f"tensorrt-{precision}": ArtifactKind(
            precision,
            ("torch", "onnx", "onnxscript"),
            functools.partial(_engines, precision=precision),
            missing=lambda source: tensorrt.missing(),
        )
        for precision in tensorrt.PRECISIONS
    },
}
