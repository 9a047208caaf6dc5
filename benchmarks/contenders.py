"""The runners that are compared, made from one bundle."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor

from export import aot, graphs, quantise
from metastable.bundle import Bundle
from metastable.engine.runners import Runner
from metastable.engine.runners.aot_runner import AotRunner
from metastable.engine.runners.onnx_runner import OnnxRunner
from metastable.engine.runners.openvino_runner import OpenVinoRunner
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import SettingsError

NAMES = ("torch", "torch-bf16", "onnx", "openvino", "aot", "openvino-bf16", "onnx-int8", "openvino-int8")
DEFAULT = tuple(name for name in NAMES if name != "aot")  # which takes minutes and a compiler to build


def make(bundle: Bundle, names: tuple[str, ...], calibration: Tensor) -> dict[str, Runner]:
    """Runners by name, on all cores; `calibration` are natural training images, for int8.

    Raises SettingsError for a name that is not in NAMES.
    """
    if unknown := sorted(set(names) - set(NAMES)):
        raise SettingsError(f"there are no runners {unknown}: choose from {', '.join(NAMES)}")

    @cache
    def exact() -> dict[str, bytes]:
        return graphs.build(bundle)

    @cache
    def eight() -> dict[str, bytes]:
        return quantise.build(bundle, calibration)

    makers: dict[str, Callable[[], Runner]] = {
        "torch": lambda: TorchRunner(bundle.networks, bundle.classifier),
        "torch-bf16": lambda: TorchRunner(bundle.networks, bundle.classifier, precision="bf16"),
        "onnx": lambda: OnnxRunner(exact()),
        "openvino": lambda: OpenVinoRunner(exact()),
        "aot": lambda: AotRunner(aot.build(bundle)),
        "openvino-bf16": lambda: OpenVinoRunner(exact(), precision="bf16"),
        "onnx-int8": lambda: OnnxRunner(eight(), precision="int8"),
        "openvino-int8": lambda: OpenVinoRunner(eight(), precision="int8"),
    }
    return {name: makers[name]() for name in names}
