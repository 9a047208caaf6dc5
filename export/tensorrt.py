"""ONNX graphs as TensorRT engines, by the API that TensorRT and TensorRT for RTX share.

Networks are strongly typed: every operation has the type that it has in the graph, so a precision is a
graph of its own (`graphs_of`).  Building needs no GPU with TensorRT for RTX, and the GPU that it is for with
TensorRT; an engine runs on the kind of GPU and with the version of TensorRT that it was built for.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from export import graphs
from export.subpixel import SubpixelScore, without_transposes
from metastable.bundle import Bundle
from metastable.errors import BundleError, MissingPackage
from metastable.networks.energy import EnergyNetwork

PACKAGES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Names under which the libraries are imported, those that are preferred first."""
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BFLOAT_OPSET = 22  # the first with convolutions of bfloat16
BATCHES = (1, 32, 256)
"""The least batch of an engine, the one that it is tuned for, and the largest."""
_LOGGERS: dict[str, Any] = {}


class Typed(nn.Module):
    """A module that computes in another type between float32 images and float32 answers."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x.to(self.dtype))
        return out.float()


def missing() -> str | None:
    """Why no engine can be built here, with what to do; None if one can."""
    if any(importlib.util.find_spec(name) for name in PACKAGES):
        return None
    return "TensorRT is not installed: pip install -r requirements-tensorrt.txt, or TensorRT itself"


def graphs_of(bundle: Bundle, precision: str) -> dict[str, bytes]:
    """The bundle's ONNX graphs that compute in a precision of PRECISIONS, by name.

    In bfloat16 transposed convolutions are convolutions and pixel shuffles: TensorRT builds no others.
    A classifier that came as a graph is there in float32 only.
    """
    if precision == "float32":
        return graphs.build(bundle)
    return {name: graph_of(bundle, name, precision) for name in graphs.modules(bundle)}


def graph_of(bundle: Bundle, name: str, precision: str) -> bytes:
    """One of `graphs_of`, below float32."""
    module, network = graphs.modules(bundle)[name], bundle.networks.get(name)
    shuffled = precision == "bfloat16"
    if shuffled:
        plain = without_transposes(module)
        module = SubpixelScore(network) if isinstance(network, EnergyNetwork) else plain
    # A copy: a cast changes the module itself.
    typed = Typed(copy.deepcopy(module), PRECISIONS[precision])
    opset = BFLOAT_OPSET if shuffled else graphs.OPSET
    return graphs.export(typed, bundle.shape, graphs.output(name), opset)


def build(graph: bytes, name: str) -> bytes:
    """The engine of an ONNX graph, serialised, for batches of BATCHES.

    Raises MissingPackage without TensorRT, and BundleError naming the graph if it is refused.
    """
    if reason := missing():
        raise MissingPackage(reason)
    trt = _library()
    builder = trt.Builder(_logger(trt))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _logger(trt))
    if not parser.parse(graph):
        found = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BundleError(f"TensorRT does not parse {name}: {found[:500]}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        sizes = [[batch if size == -1 else size for size in value.shape] for batch in BATCHES]
        profile.set_shape(value.name, *sizes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BundleError(f"TensorRT parses {name} but does not build it: its messages above say why")
    return bytes(engine)


def version() -> str:
    """Name and version of the library that `build` uses."""
    library = _library()
    return f"{library.__name__} {library.__version__}"


def _library() -> Any:
    return importlib.import_module(next(name for name in PACKAGES if importlib.util.find_spec(name)))


def _logger(trt: Any) -> Any:
    # One for the process: the library keeps the first that it is given.
    return _LOGGERS.setdefault(trt.__name__, trt.Logger(trt.Logger.ERROR))
