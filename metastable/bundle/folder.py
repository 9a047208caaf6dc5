"""Bundles as folders: written, loaded, and changed one piece at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from metastable import settings as settings_module
from metastable.anomaly import Calibration, Threshold
from metastable.bundle import architectures, files, weights
from metastable.bundle import manifest as manifest_module
from metastable.bundle.checks import MANIFEST
from metastable.bundle.manifest import RESIZE, Manifest, NetworkPart, OnnxPart, Part, Provenance
from metastable.dynamics import ScoreFunction
from metastable.errors import BundleError, SettingsError
from metastable.networks.onnx_classifier import OnnxClassifier

SETTINGS = "settings.yaml"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle, networks in eval mode and float32.

    Attributes:
        shape: (channels, height, width) of an image.
        classifier: images of `shape` in [0, 1] to logits [B, classes].
        networks: the purifying networks by name; each has a method `score`.
        parts: SHA-256 of the file of every part: what the networks compute.
        digest: SHA-256 of bundle.json, which holds the digests of all the rest.
        shifts: thresholds of the prediction shift by setting, of those that were calibrated.
    """

    name: str
    version: str
    classes: list[str]
    shape: tuple[int, int, int]
    classifier: nn.Module
    networks: dict[str, nn.Module]
    parts: dict[str, str]
    anomaly: Calibration | None
    settings: settings_module.Settings
    provenance: Provenance
    digest: str
    shifts: Mapping[str, Threshold] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, ScoreFunction]:
        """The networks' score functions, by name."""
        return {name: network.score for name, network in self.networks.items()}  # type: ignore[misc]


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
    model: bytes, *, size: int, mean: tuple[float, ...], std: tuple[float, ...], to: int
) -> Stored:
    """An ONNX classifier of images of `size` as a part of a bundle whose images have the size `to`."""
    return Stored(OnnxPart(size, mean, std, None if size == to else RESIZE, files.digest(model)), model)


def stored_part(folder: Path, name: str) -> Stored:
    """A part of the bundle in `folder` with its bytes, checked; BundleError if it is absent or damaged."""
    manifest = manifest_module.parse(files.read(folder, MANIFEST, files.MANIFEST_BYTES))
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


def write(
    folder: Path,
    *,
    name: str,
    version: str,
    classes: list[str],
    shape: tuple[int, int, int],
    networks: Mapping[str, tuple[nn.Module, dict[str, Any]]],
    settings: str,
    anomaly: Calibration | None,
    half: bool = True,
    provenance: Provenance | None = None,
) -> None:
    """Write a bundle; `networks` maps part names to (network, constructor arguments), stored as `half` says.

    Raises SettingsError or BundleError for what `load` would refuse in settings.yaml or bundle.json.
    """
    write_stored(
        folder,
        {part: stored_network(*of, half=half) for part, of in networks.items()},
        name=name,
        version=version,
        classes=classes,
        shape=shape,
        settings=settings,
        anomaly=anomaly,
        provenance=provenance or Provenance(),
    )


def write_stored(
    folder: Path,
    parts: Mapping[str, Stored],
    *,
    name: str,
    version: str,
    classes: list[str],
    shape: tuple[int, int, int],
    settings: str,
    anomaly: Calibration | None,
    provenance: Provenance,
) -> None:
    """Write a bundle of parts as they are stored; otherwise like `write`."""
    manifest = Manifest(
        name=name,
        version=version,
        classes=classes,
        shape=shape,
        parts={part: one.part for part, one in parts.items()},
        settings_sha256=files.digest(settings.encode()),
        anomaly=anomaly,
        provenance=provenance,
    )
    _save(folder, manifest, settings, {part: one.data for part, one in parts.items()})


def rewrite(
    base: Path, folder: Path, classifier: Stored, *, name: str, classes: list[str], provenance: Provenance
) -> None:
    """Write a bundle that is `base` behind another classifier: its networks, settings and calibration stay.

    Raises BundleError if `base` is damaged or is the folder to write.
    """
    if base.resolve() == folder.resolve():
        raise BundleError("the new bundle needs a folder of its own, not that of its base")
    old = manifest_module.parse(files.read(base, MANIFEST, files.MANIFEST_BYTES))
    settings = files.read_checked(base, SETTINGS, files.SETTINGS_BYTES, old.settings_sha256)
    data = {
        part: files.read_checked(base, file, files.PART_BYTES, old.parts[part].sha256)
        for part, file in old.files().items()
        if part != "classifier"
    }
    manifest = dataclasses.replace(
        old,
        name=name,
        classes=classes,
        parts={**old.parts, "classifier": classifier.part},
        provenance=provenance,
        shifts={},  # they are of the old classifier
    )
    _save(folder, manifest, settings.decode(), {**data, "classifier": classifier.data})


def load(folder: Path) -> Bundle:
    """Load and check a bundle; raises BundleError naming the part that is wrong."""
    raw = files.read(folder, MANIFEST, files.MANIFEST_BYTES)
    manifest = manifest_module.parse(raw)
    text = files.read_checked(folder, SETTINGS, files.SETTINGS_BYTES, manifest.settings_sha256)
    settings = checked_settings(text, manifest)
    modules = {
        name: _module(
            name, files.read_checked(folder, file, files.PART_BYTES, manifest.parts[name].sha256), manifest
        )
        for name, file in manifest.files().items()
    }
    return Bundle(
        name=manifest.name,
        version=manifest.version,
        classes=manifest.classes,
        shape=manifest.shape,
        classifier=modules["classifier"],
        networks={name: module for name, module in modules.items() if name != "classifier"},
        parts={name: part.sha256 for name, part in manifest.parts.items()},
        anomaly=manifest.anomaly,
        settings=settings,
        provenance=manifest.provenance,
        digest=files.digest(raw),
        shifts=manifest.shifts,
    )


def network(folder: Path, name: str) -> nn.Module:
    """One purifying network of a bundle; BundleError if there is none of this name."""
    found = load(folder).networks
    if name not in found:
        raise BundleError(f"{folder} has no network {name!r}, only {sorted(found)}")
    return found[name]


def file_names(folder: Path) -> list[str]:
    """The files that make up the bundle in `folder`; whatever else lies there is no part of it."""
    manifest = manifest_module.parse(files.read(folder, MANIFEST, files.MANIFEST_BYTES))
    return [MANIFEST, SETTINGS, *manifest.files().values()]


def _save(folder: Path, manifest: Manifest, settings: str, data: Mapping[str, bytes]) -> None:
    raw = encoded(settings)
    settings_module.parse(settings)
    # Judged before anything is written; the manifest comes last, so that half a bundle does not load.
    manifest_module.parse(manifest_module.render(manifest))
    folder.mkdir(parents=True, exist_ok=True)
    for part, file in manifest.files().items():
        files.replace(folder, file, data[part])
    files.replace(folder, SETTINGS, raw)
    put_manifest(folder, manifest)


def encoded(settings: str) -> bytes:
    """The bytes of settings.yaml; BundleError if `load` would not read so many."""
    raw = settings.encode()
    if len(raw) > files.SETTINGS_BYTES:
        raise BundleError(f"{SETTINGS} has {len(raw)} bytes, and at most {files.SETTINGS_BYTES} are read")
    return raw


def put_manifest(folder: Path, manifest: Manifest) -> None:
    """Write bundle.json; BundleError if `load` would refuse it."""
    raw = manifest_module.render(manifest)
    manifest_module.parse(raw)
    files.replace(folder, MANIFEST, raw)


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if half and value.is_floating_point() and value.ndim >= 2 else value


def checked_settings(text: bytes, manifest: Manifest) -> settings_module.Settings:
    """The settings of a bundle; BundleError if they are wrong or need a part that it does not have."""
    try:
        settings = settings_module.parse(text.decode())
    except (SettingsError, UnicodeDecodeError) as error:
        raise BundleError(f"{SETTINGS}: {error}") from None
    used: set[str] = {one.network for one in settings.by_name.values() if one.network}
    if manifest.anomaly is not None:
        used.add(manifest.anomaly.network)
    part = manifest.parts["classifier"]
    both = isinstance(part, NetworkPart) and architectures.averages_views(part.architecture, part.arguments)
    if twice := [one.name for one in settings.by_name.values() if one.mirror and both]:
        raise BundleError(
            f"the settings {twice} mirror every second chain, and the classifier averages both views: "
            "leave mirror out"
        )
    if unknown := sorted(set(manifest.shifts) - set(settings.by_name)):
        raise BundleError(f"{MANIFEST} has thresholds of settings that the bundle does not have: {unknown}")
    if missing := sorted(used - set(manifest.parts)):
        raise BundleError(f"the settings or the anomaly flag need {missing}, which the bundle does not have")
    return settings


def _module(name: str, data: bytes, manifest: Manifest) -> nn.Module:
    """The network of a part, checked against the shape of images and the number of classes."""
    file = manifest.files()[name]
    network = module_of(Stored(manifest.parts[name], data), file)
    classifies = name == "classifier"
    run: Callable[[Tensor], Tensor] = network if classifies else network.score  # type: ignore[assignment]
    architectures.check_network(file, run, manifest.shape, len(manifest.classes) if classifies else None)
    return network
