"""The model format: one folder that `export` writes and everything else loads.

    bundle.json            schema, name, version, classes, image shape, parts with SHA-256, anomaly
    settings.yaml          the settings (metastable.settings)
    <part>.safetensors     weights of `classifier`, `score` and, if there, `energy`

Nothing in a bundle is executed: weights are safetensors, architectures are names from a table
here, file names are plain names inside the folder.  Every part is checked against its SHA-256.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from metastable import settings as settings_module
from metastable.anomaly import Calibration
from metastable.dynamics import ScoreFunction
from metastable.errors import BundleError, SettingsError
from metastable.networks import channels_last
from metastable.networks.classifier import WhitenedNet, WideResNet
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork

SCHEMA = 1
MANIFEST, SETTINGS = "bundle.json", "settings.yaml"
ARCHIVE_FOLDER = "bundle"  # where a TorchServe archive keeps its bundle
MAX_PART_BYTES = 512 * 2**20
ARCHITECTURES: dict[str, type[nn.Module]] = {
    "WhitenedNet": WhitenedNet,
    "WideResNet": WideResNet,
    "EnergyNetwork": EnergyNetwork,
    "ScoreNetwork": ScoreNetwork,
}


@dataclass(frozen=True)
class Part:
    """One network: architecture name and arguments, and the SHA-256 of `<name>.safetensors`."""

    architecture: str
    arguments: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle, networks in eval mode and float32.

    Attributes:
        shape: (channels, height, width) of an image.
        networks: the purifying networks by name; each has a method `score`.
        digest: SHA-256 of bundle.json, which holds the digests of all the rest.
    """

    name: str
    version: str
    classes: list[str]
    shape: tuple[int, int, int]
    classifier: nn.Module
    networks: dict[str, nn.Module]
    anomaly: Calibration | None
    settings: settings_module.Settings
    digest: str

    @property
    def scores(self) -> dict[str, ScoreFunction]:
        """The networks' score functions, by name."""
        return {name: network.score for name, network in self.networks.items()}  # type: ignore[misc]


def write(
    folder: Path,
    *,
    name: str,
    version: str,
    classes: list[str],
    shape: tuple[int, int, int],
    networks: dict[str, tuple[nn.Module, dict[str, Any]]],
    settings: str,
    anomaly: Calibration | None,
    half: bool = True,
) -> None:
    """Write a bundle; `networks` maps part names to (network, constructor arguments).

    With `half`, weights of two and more dimensions are stored as float16; statistics and biases
    stay float32.
    """
    settings_module.parse(settings)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part, (network, arguments) in networks.items():
        data = save_safetensors({k: _stored(v, half) for k, v in network.state_dict().items()})
        (folder / f"{part}.safetensors").write_bytes(data)
        parts[part] = Part(type(network).__name__, arguments, hashlib.sha256(data).hexdigest())
    (folder / SETTINGS).write_text(settings, encoding="utf-8")
    manifest = {
        "schema": SCHEMA,
        "name": name,
        "version": version,
        "classes": classes,
        "shape": list(shape),
        "range": [0.0, 1.0],
        "parts": {k: dataclasses.asdict(v) for k, v in parts.items()},
        "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "anomaly": None if anomaly is None else dataclasses.asdict(anomaly),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Bundle:
    """Load and check a bundle; raises BundleError naming the part that is wrong."""
    raw = _read(folder, MANIFEST)
    manifest = _manifest(raw)
    text = _read(folder, SETTINGS)
    _check_digest(SETTINGS, text, manifest["settings_sha256"])
    try:
        settings = settings_module.parse(text.decode())
        anomaly = None if manifest["anomaly"] is None else Calibration(**manifest["anomaly"])
        parts = {str(name): Part(**fields) for name, fields in manifest["parts"].items()}
        channels, height, width = (int(v) for v in manifest["shape"])
    except (SettingsError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"bundle {folder.name}: {error}") from None
    if "classifier" not in parts or set(parts) - {"classifier", "score", "energy"}:
        raise BundleError(f"{MANIFEST}: parts must be classifier and any of score and energy")
    networks = {name: _network(folder, name, part) for name, part in parts.items()}
    used = {s.network for s in settings.by_name.values() if s.purifies}
    if missing := sorted((used | ({anomaly.network} if anomaly else set())) - set(networks)):
        raise BundleError(f"the settings need the networks {missing}, which are not in the bundle")
    return Bundle(
        name=str(manifest["name"]),
        version=str(manifest["version"]),
        classes=[str(c) for c in manifest["classes"]],
        shape=(channels, height, width),
        classifier=networks["classifier"],
        networks={k: v for k, v in networks.items() if k != "classifier"},
        anomaly=anomaly,
        settings=settings,
        digest=hashlib.sha256(raw).hexdigest(),
    )


def set_anomaly(folder: Path, calibration: Calibration) -> None:
    """Put a new calibration into an existing bundle (its digest changes)."""
    manifest = _manifest(_read(folder, MANIFEST))
    manifest["anomaly"] = dataclasses.asdict(calibration)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if half and value.is_floating_point() and value.ndim >= 2 else value


def _manifest(raw: bytes) -> dict[str, Any]:
    wanted = {"schema", "name", "version", "classes", "shape", "range", "parts", "settings_sha256", "anomaly"}
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError):
        raise BundleError(f"{MANIFEST} is not JSON: export the bundle again") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise BundleError(f"{MANIFEST} is not of schema version {SCHEMA}: export it with this release")
    if set(manifest) != wanted:
        raise BundleError(f"{MANIFEST} must have exactly the keys {sorted(wanted)}")
    classes = manifest["classes"]
    if not isinstance(classes, list) or len(classes) < 2 or not isinstance(manifest["parts"], dict):
        raise BundleError(f"{MANIFEST}: classes must be a list of two or more, parts a mapping")
    return manifest


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PART_BYTES:
            raise BundleError(f"{name} is missing from bundle {folder.name}, a link, or too large")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror}") from None


def _check_digest(name: str, data: bytes, wanted: str) -> None:
    if hashlib.sha256(data).hexdigest() != wanted:
        raise BundleError(f"{name} does not match its SHA-256 in {MANIFEST}: it is damaged or was changed")


def _network(folder: Path, name: str, part: Part) -> nn.Module:
    """Build the named architecture and load its weights, every tensor's name and shape checked."""
    data = _read(folder, f"{name}.safetensors")
    _check_digest(f"{name}.safetensors", data, part.sha256)
    if part.architecture not in ARCHITECTURES:
        raise BundleError(f"{name}: unknown architecture {part.architecture!r}")
    try:
        # On the meta device nothing is allocated, however large the arguments claim to be.
        with torch.device("meta"):
            network = ARCHITECTURES[part.architecture](**part.arguments)
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in load_safetensors(data).items()}
        network.load_state_dict(tensors, assign=True)
    except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{name}: the weights do not fit {part.architecture}: {error}") from None
    for value in tensors.values():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise BundleError(f"{name}: a weight is not a finite number")
    return channels_last(network).eval().requires_grad_(False)
