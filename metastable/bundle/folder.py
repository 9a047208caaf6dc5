"""Bundles as folders: written, loaded, and changed one piece at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metastable import settings as settings_module
from metastable.anomaly import Calibration, Threshold
from metastable.bundle import architectures, files
from metastable.bundle import manifest as manifest_module
from metastable.bundle.checks import MANIFEST
from metastable.bundle.manifest import Manifest, NetworkPart, Provenance
from metastable.bundle.parts import Stored, module_of, stored_network
from metastable.dynamics import ScoreFunction
from metastable.errors import BundleError, SettingsError
from metastable.images import STRETCH, Fit

SETTINGS = "settings.yaml"
ANY = ([1, 1], [13, 27], [48, 32])
"""Heights and widths that stand for all that a bundle without a classifier takes."""


def kept_shifts(
    shifts: Mapping[str, Threshold], old: settings_module.Settings, new: settings_module.Settings
) -> dict[str, Threshold]:
    """The thresholds of settings that are the same in both."""
    same = {name for name in shifts if old.by_name.get(name) == new.by_name.get(name)}
    return {name: shifts[name] for name in shifts if name in same}


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle, networks in eval mode and float32.

    Attributes:
        shape: (channels, height, width) of an image.
        fit: how pictures of other sizes become such images.
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
    fit: Fit = STRETCH

    @property
    def calibration(self) -> Calibration:
        """The anomaly flag's calibration, which chooses the noise of some settings: no answer without it.

        Raises BundleError where the bundle has none.
        """
        if self.anomaly is None:
            raise BundleError(
                f"the bundle {self.name} has no anomaly calibration: run `metastable calibrate` first"
            )
        return self.anomaly

    def with_settings(self, settings: settings_module.Settings) -> Bundle:
        """With other settings; one that is as it was keeps the threshold of its shift."""
        return replace(self, settings=settings, shifts=kept_shifts(self.shifts, self.settings, settings))

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
    shape: tuple[int, ...],
    networks: Mapping[str, tuple[nn.Module, dict[str, Any]]],
    settings: str,
    anomaly: Calibration | None,
    half: bool = True,
    provenance: Provenance | None = None,
    fit: Fit = STRETCH,
) -> None:
    """Write a bundle; `networks` maps part names to (network, constructor arguments), stored as `half` says.

    One without a classifier has no classes, and of the shape the channels alone: it takes any size.
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
        fit=fit,
    )


def write_stored(
    folder: Path,
    parts: Mapping[str, Stored],
    *,
    name: str,
    version: str,
    classes: list[str],
    shape: tuple[int, ...],
    settings: str,
    anomaly: Calibration | None,
    provenance: Provenance,
    fit: Fit = STRETCH,
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
        fit=fit,
    )
    _save(folder, manifest, settings, {part: one.data for part, one in parts.items()})


def rewrite(
    base: Path,
    folder: Path,
    classifier: Stored,
    *,
    name: str,
    classes: list[str],
    shape: tuple[int, int, int] | None = None,
    fit: Fit | None = None,
    provenance: Provenance,
) -> None:
    """Write a bundle that is `base` behind another classifier: its networks, settings and calibration stay.

    `shape` is that of images where `base` has no classifier, and left out where it has one; without a `fit`
    pictures become images as they do in `base`.
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
        shape=shape or old.shape,
        parts={**old.parts, "classifier": classifier.part},
        provenance=provenance,
        shifts={},  # they are of the old classifier
        fit=fit or old.fit,
    )
    _save(folder, manifest, settings.decode(), {**data, "classifier": classifier.data})


def load(folder: Path) -> Bundle:
    """Load and check a bundle; BundleError names what is wrong, or refuses one that only purifies."""
    manifest, settings, modules, digest = opened(folder)
    if not manifest.classifies:
        raise BundleError(manifest_module.purifies_only(manifest.name))
    channels, height, width = manifest.shape
    return Bundle(
        name=manifest.name,
        version=manifest.version,
        classes=manifest.classes,
        shape=(channels, height, width),
        classifier=modules["classifier"],
        networks={name: module for name, module in modules.items() if name != "classifier"},
        parts={name: part.sha256 for name, part in manifest.parts.items()},
        anomaly=manifest.anomaly,
        settings=settings,
        provenance=manifest.provenance,
        digest=digest,
        shifts=manifest.shifts,
        fit=manifest.fit,
    )


def opened(folder: Path) -> tuple[Manifest, settings_module.Settings, dict[str, nn.Module], str]:
    """What a bundle holds, checked: manifest, settings, networks by part, and its digest."""
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
    return manifest, settings, modules, files.digest(raw)


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
    _rendered(manifest)
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
    files.replace(folder, MANIFEST, _rendered(manifest))


def _rendered(manifest: Manifest) -> bytes:
    raw = manifest_module.render(manifest)
    if len(raw) > files.MANIFEST_BYTES:
        raise BundleError(
            f"{MANIFEST} has {len(raw)} bytes, above {files.MANIFEST_BYTES}: shorten class names"
        )
    manifest_module.parse(raw)
    return raw


def checked_settings(text: bytes, manifest: Manifest) -> settings_module.Settings:
    """The settings of a bundle; BundleError if they are wrong or need a part that it does not have."""
    try:
        settings = settings_module.parse(text.decode())
    except (SettingsError, UnicodeDecodeError) as error:
        raise BundleError(f"{SETTINGS}: {error}") from None
    used: set[str] = {one.network for one in settings.by_name.values() if one.network}
    if manifest.anomaly is not None:
        used.add(manifest.anomaly.network)
    part = manifest.parts.get("classifier")
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
    """The network of a part, checked against the shape of images and the number of classes.

    Where images have any shape it is checked on several.
    """
    file = manifest.files()[name]
    network = module_of(Stored(manifest.parts[name], data), file)
    classifies = name == "classifier"
    run: Callable[[Tensor], Tensor] = network if classifies else network.score  # type: ignore[assignment]
    channels, *sides = manifest.shape
    for height, width in [sides] if sides else ANY:
        shape = (channels, height, width)
        architectures.check_network(file, run, shape, len(manifest.classes) if classifies else None)
    return network
