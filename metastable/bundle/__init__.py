"""The model format: one folder that `export` writes and everything else loads.

    bundle.json              what the bundle is, field by field (metastable.bundle.manifest)
    settings.yaml            the settings (metastable.settings)
    <part>.safetensors       weights of `classifier` and of the purifying networks
    classifier.onnx          in place of classifier.safetensors: a network that is not one of ours

Nothing in a bundle is executed: weights are safetensors, architectures are names from a table here, a
graph is data for ONNX Runtime with its standard operators only, file names follow from part names.
Every part is checked against its SHA-256, every field of bundle.json by type and range.
"""

from metastable.bundle.architectures import ARCHITECTURES
from metastable.bundle.checks import MANIFEST
from metastable.bundle.edit import set_anomaly, set_settings
from metastable.bundle.folder import (
    SETTINGS,
    Bundle,
    file_names,
    load,
    network,
    rewrite,
    write,
    write_stored,
)
from metastable.bundle.manifest import SCHEMA, NetworkPart, OnnxPart, Provenance, parsed_part
from metastable.bundle.parts import Stored, module_of, stored_network, stored_onnx, stored_part
from metastable.bundle.purifier import Purifier, classifies, load_purifier

ARCHIVE_FOLDER = "bundle"
"""Where a TorchServe archive keeps its bundle."""
ARTIFACTS_FOLDER = "artifacts"
"""Where it keeps what was exported of the bundle, <kind>/<name>.onnx or .pt2."""

__all__ = [
    "ARCHITECTURES",
    "ARCHIVE_FOLDER",
    "ARTIFACTS_FOLDER",
    "MANIFEST",
    "SCHEMA",
    "SETTINGS",
    "Bundle",
    "NetworkPart",
    "OnnxPart",
    "Provenance",
    "Purifier",
    "Stored",
    "classifies",
    "file_names",
    "load",
    "load_purifier",
    "module_of",
    "network",
    "parsed_part",
    "rewrite",
    "set_anomaly",
    "set_settings",
    "stored_network",
    "stored_onnx",
    "stored_part",
    "write",
    "write_stored",
]
