"""What can be changed in a bundle that is there: its thresholds and its settings.  Its digest changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from metastable.anomaly import Calibration, Threshold
from metastable.bundle import files
from metastable.bundle import manifest as manifest_module
from metastable.bundle.checks import MANIFEST
from metastable.bundle.folder import SETTINGS, checked_settings, encoded, kept_shifts, put_manifest
from metastable.bundle.manifest import Manifest
from metastable.errors import BundleError


def set_anomaly(
    folder: Path, calibration: Calibration, shifts: Mapping[str, Threshold] | None = None
) -> None:
    """Put a new calibration into a bundle, and the prediction shift's thresholds by setting.

    A threshold of a shift that is not named goes: the flag of the score norm chooses how much noise some
    settings add, so the old ones are of answers that are no more.

    Raises BundleError for a shift of a setting that the bundle does not have.
    """
    manifest = _manifest(folder)
    text = files.read_checked(folder, SETTINGS, files.SETTINGS_BYTES, manifest.settings_sha256)
    known, shifts = checked_settings(text, manifest).by_name, dict(shifts or {})
    if unknown := sorted(set(shifts) - set(known)):
        raise BundleError(f"the bundle has no settings {unknown} to calibrate: it has {sorted(known)}")
    put_manifest(folder, dataclasses.replace(manifest, anomaly=calibration, shifts=shifts))


def set_settings(folder: Path, settings: str) -> None:
    """Put new settings into a bundle; those that stay as they are keep the threshold of their shift.

    Raises SettingsError or BundleError if they are wrong or need networks that the bundle has not.
    """
    manifest, raw = _manifest(folder), encoded(settings)
    before = files.read_checked(folder, SETTINGS, files.SETTINGS_BYTES, manifest.settings_sha256)
    try:
        old = checked_settings(before, manifest)
    except BundleError:
        old = None  # another release's, perhaps: nothing is known to stay
    # Without the old thresholds, which may be of settings that go.
    new = checked_settings(raw, dataclasses.replace(manifest, shifts={}))
    shifts = {} if old is None else kept_shifts(manifest.shifts, old, new)
    manifest = dataclasses.replace(manifest, settings_sha256=files.digest(raw), shifts=shifts)
    files.replace(folder, SETTINGS, raw)
    put_manifest(folder, manifest)


def _manifest(folder: Path) -> Manifest:
    return manifest_module.parse(files.read(folder, MANIFEST, files.MANIFEST_BYTES))
