"""What of a bundle purifies, which is all that there is in a bundle without a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from metastable.bundle import files
from metastable.bundle import manifest as manifest_module
from metastable.bundle.checks import MANIFEST
from metastable.bundle.folder import opened
from metastable.bundle.manifest import Provenance
from metastable.dynamics import ScoreFunction
from metastable.settings import Settings


@dataclass(frozen=True)
class Purifier:
    """Networks that purify images of any height and width, in eval mode and float32.

    Attributes:
        channels: of an image.
        networks: by name; each has a method `score`.
        parts: SHA-256 of the file of every part.
        digest: SHA-256 of bundle.json.
    """

    name: str
    version: str
    channels: int
    networks: dict[str, nn.Module]
    parts: dict[str, str]
    settings: Settings
    provenance: Provenance
    digest: str

    @property
    def scores(self) -> dict[str, ScoreFunction]:
        """The networks' score functions, by name."""
        return {name: network.score for name, network in self.networks.items()}  # type: ignore[misc]


def classifies(folder: Path) -> bool:
    """Whether the bundle in `folder` has a classifier; BundleError if it is damaged."""
    return manifest_module.parse(files.read(folder, MANIFEST, files.MANIFEST_BYTES)).classifies


def load_purifier(folder: Path) -> Purifier:
    """Load and check a bundle without a classifier; raises BundleError naming the part that is wrong."""
    manifest, settings, modules, digest = opened(folder)
    return Purifier(
        name=manifest.name,
        version=manifest.version,
        channels=manifest.shape[0],
        networks=modules,
        parts={name: part.sha256 for name, part in manifest.parts.items()},
        settings=settings,
        provenance=manifest.provenance,
        digest=digest,
    )
