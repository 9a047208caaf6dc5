"""From a PyTorch module to a graph, exported rightly and compared; and a graph against its module."""

from __future__ import annotations

import copy
import importlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.adapt.editor import Editor
from export.adapt.reading import read
from export.adapt.running import Failed, Running, softmax
from export.adapt.values import Adapted
from metastable.bundle import files
from metastable.bundle.weights import read as read_weights
from metastable.errors import BundleError, MissingPackage
from metastable.networks import onnx_classifier

TOLERANCE = 1e-3
"""How far an output may be from the module's, relative to the largest."""
IMAGES = 5


@dataclass(frozen=True)
class Named:
    """A graph made of a name and weights, with the mean and std that it was trained with."""

    graph: bytes
    mean: tuple[float, ...]
    std: tuple[float, ...]


def from_module(module: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """The ONNX graph of a module in eval mode, for any number of images, its weights inside.

    The module is not changed: a float32 copy of it on the CPU is exported, by torch.export and, where that
    fails or differs, by the older exporter; the graph's outputs are those of the module on images of noise.

    Args:
        shape: channels, height, width of its images.

    Raises BundleError where neither exporter gives a graph that computes what the module does.
    """
    try:
        network = copy.deepcopy(module).to("cpu", torch.float32).eval()
    except Exception as error:  # whatever a foreign module raises
        raise BundleError(f"the module cannot be copied: {onnx_classifier.short(error)}") from None
    images = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    reasons = []
    for name, write in (("dynamo", _by_dynamo), ("the older exporter", _by_trace)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = write(network, images[:2])
        except Exception as error:  # torch's exporters raise all kinds
            reasons.append(f"{name}: {onnx_classifier.short(error)}")
            continue
        away = max(_away(network, graph, images[:n]) for n in (1, IMAGES))
        if away <= TOLERANCE:
            return graph
        reasons.append(f"{name}: its graph differs from the module by {away:.2g} of the largest output")
    raise BundleError(f"the module cannot be exported to ONNX ({'; '.join(reasons)})")


def _by_dynamo(network: nn.Module, images: Tensor) -> bytes:
    program = torch.onnx.export(
        network,
        (images,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("it gives no program")
    return bytes(program.model_proto.SerializeToString())


def _by_trace(network: nn.Module, images: Tensor) -> bytes:
    data: Any = io.BytesIO()  # which the type of `export` leaves out
    torch.onnx.export(
        network,
        (images,),
        data,
        dynamo=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )
    return bytes(data.getvalue())


def _away(network: nn.Module, graph: bytes, images: Tensor) -> float:
    """How far the first output is from the module's; infinite where it cannot be compared."""
    proto, file, _ = read(graph)
    editor = Editor(proto, file, [])
    with torch.no_grad():
        wanted = network(images)
    name = proto.graph.output[0].name
    try:
        found = Running(editor, [name])(images.numpy())[name]
    except Failed:
        return float("inf")
    if not isinstance(wanted, Tensor) or tuple(wanted.shape) != found.shape:
        return float("inf")
    return _relative(found, wanted.numpy())


def same_as_module(module: nn.Module, adapted: Adapted, images: Tensor) -> str | None:
    """A warning where a graph does not compute what the module does that it was exported from; else None.

    Args:
        module: takes what its graph took before it was adapted to float32 NCHW images, and is in eval mode.
        images: float32 [n, channels, height, width] in [0, 1], normalised with the adapted mean and std here.
    """
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (adapted.mean, adapted.std))
    x = (images.to(torch.float32) - mean) / std
    with torch.no_grad():
        output = module(x)
    wanted = np.asarray(output.to(torch.float32).reshape(len(x), -1).numpy(), np.float64)
    proto, file, _ = read(adapted.graph)
    name = proto.graph.output[0].name
    found = Running(Editor(proto, file, []), [name])(x.numpy())[name].astype(np.float64)
    if found.shape[1] == 2 and wanted.shape[1] == 1:
        logit = found[:, 1:] - found[:, :1]
        forms = [logit, 1 / (1 + np.exp(-logit))]
    else:
        forms = [found, softmax(found)]  # the module may give probabilities, of which the graph has logits
    if forms[0].shape != wanted.shape:
        return f"the graph gives {found.shape[1]} numbers an image and the module {wanted.shape[1]}"
    away = min(_relative(one, wanted) for one in forms)
    if away <= TOLERANCE:
        return None
    other = int((forms[0].argmax(1) != wanted.argmax(1)).sum())
    return (
        f"the graph's logits differ from the module's by {away:.2g} of the largest, and {other} of {len(x)} "
        "labels: export it again after model.eval(), with the other exporter (dynamo=False or True) or opset"
    )


def _relative(found: Any, wanted: Any) -> float:
    away = np.abs(np.asarray(found, np.float64) - wanted).max() / max(1.0, float(np.abs(wanted).max()))
    return float(away) if np.isfinite(away) else float("inf")


def from_timm(name: str, weights: Path) -> Named:
    """The graph of a network of timm with a safetensors state dict, and its mean and std.

    Raises MissingPackage without timm, BundleError for a name that timm does not have and for weights that do
    not fit.
    """
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError:
        raise MissingPackage(
            f"the network {name} needs the package timm: pip install timm, or export the module where it is"
        ) from None
    tensors = read_weights(files.read(weights.parent, weights.name, files.PART_BYTES), weights.name)
    try:
        head = timm.get_pretrained_cfg(name).classifier
        module = timm.create_model(name, pretrained=False, num_classes=len(tensors[f"{head}.weight"]))
        module.load_state_dict(tensors)
        config = timm.data.resolve_data_config({}, model=module)
    except Exception as error:  # timm's and PyTorch's own, of many classes
        raise BundleError(f"{weights.name} is not {name} of timm: {onnx_classifier.short(error)}") from None
    channels, height, width = config["input_size"]
    graph = from_module(module, (channels, height, width))
    return Named(graph, tuple(config["mean"]), tuple(config["std"]))
