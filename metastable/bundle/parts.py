"""Parts of a bundle: networks as bytes, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from metastable.bundle import architectures, files, weights
from metastable.bundle import manifest as manifest_module
from metastable.bundle.checks import MANIFEST
from metastable.bundle.manifest import NetworkPart, OnnxPart, Part, resizes
from metastable.errors import BundleError
from metastable.networks.onnx_classifier import OnnxClassifier


@dataclass(frozen=True)
class Stored:
    """A part as the manifest has it, and the bytes of its file."""

    part: Part
    data: bytes


def stored_network(network: nn.Module, arguments: dict[str, Any], *, half: bool) -> Stored:
    """A network and its constructor arguments as a part.

    With `half`, weights of two and more dimensions become float16; statistics and biases stay float32.
    """
    state = {key: _stored(value, half) for key, value in network.state_dict().items()}
    data = save_safetensors(state)
    return Stored(NetworkPart(type(network).__name__, arguments, files.digest(data)), data)


def stored_onnx(
    model: bytes,
    *,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    to: tuple[int, int],
) -> Stored:
    """An ONNX classifier of images of `size` as a part of a bundle whose images have the size `to`.

    Both are (height, width).
    """
    return Stored(OnnxPart(size, mean, std, resizes(size, to), files.digest(model)), model)


def stored_part(folder: Path, name: str) -> Stored:
    """A part of the bundle in `folder` with its bytes, checked; BundleError if it is absent or damaged."""
    manifest = manifest_module.parse(files.read(folder, MANIFEST, files.MANIFEST_BYTES))
    if name == "classifier" and not manifest.classifies:
        raise BundleError(manifest_module.purifies_only(manifest.name))
    if name not in manifest.parts:
        raise BundleError(f"{folder} has no part {name!r}, only {sorted(manifest.parts)}")
    part = manifest.parts[name]
    return Stored(part, files.read_checked(folder, manifest.files()[name], files.PART_BYTES, part.sha256))


def module_of(stored: Stored, file: str) -> nn.Module:
    """The network that a part's bytes make; BundleError naming `file` if they do not fit or are refused."""
    part = stored.part
    if isinstance(part, NetworkPart):
        return architectures.build(file, part.architecture, part.arguments, weights.read(stored.data, file))
    return OnnxClassifier(stored.data, size=part.size, mean=part.mean, std=part.std, file=file)


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if half and value.is_floating_point() and value.ndim >= 2 else value
