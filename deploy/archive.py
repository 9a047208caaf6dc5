"""What an archive (.mar) holds, for the launcher: a bundle, what was exported of it, and options."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.run_folder import Refused
from metastable import bundle as bundles
from metastable.errors import MetastableError

CONFIG = "model-config.yaml"
_MOST_CONFIG = 100_000


@contextlib.contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A folder with what it holds, for a while; Refused for what is no archive."""
    with tempfile.TemporaryDirectory(prefix="metastable-") as place:
        folder = Path(place)
        try:
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise Refused(f"{archive} is no archive: {error}") from None
        yield folder


def configuration(folder: Path) -> dict[str, Any]:
    """The model configuration of an unpacked archive; MetastableError where it cannot be read."""
    try:
        found = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")[:_MOST_CONFIG])
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MetastableError(f"the archive's {CONFIG} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def bundle_folder(folder: Path) -> Path:
    """Of an unpacked archive."""
    return folder / bundles.ARCHIVE_FOLDER
