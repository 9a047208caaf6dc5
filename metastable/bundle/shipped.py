"""The bundles that come with the project, by name.

They lie in `model_store` of a checkout.  A wheel has them inside the package, as `metastable/_bundles`:
nothing else of ours may lie beside the package there (`pyproject.toml` maps one to the other).
"""

from __future__ import annotations

import os
from pathlib import Path

from metastable.bundle.checks import MANIFEST
from metastable.errors import BundleError

_PACKAGE = Path(__file__).resolve().parent.parent


def names() -> list[str]:
    """Of the bundles that are here, sorted; none in a TorchServe archive, which holds one of its own."""
    return sorted(path.parent.name for path in _root().glob(f"*/{MANIFEST}"))


def folder(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a bundle.

    Args:
        bundle: a shipped bundle's name; or a path, which is a Path, or a text with a separator (`./mine`).

    Raises BundleError for a name that is not shipped, and says which are, or a path where no bundle is.
    """
    if isinstance(bundle, str) and Path(bundle).name == bundle:
        if bundle in (known := names()):
            return _root() / bundle
        here = f"; for the folder {bundle} that is here write './{bundle}'" if Path(bundle).is_dir() else ""
        raise BundleError(
            f"there is no bundle {bundle!r}: name one of {', '.join(known) or 'none'}, or give the path of a "
            f"folder with {MANIFEST}, such as './mine/{bundle}'{here}"
        )
    path = Path(bundle)
    if not (path / MANIFEST).is_file():
        raise BundleError(
            f"{path} holds no bundle, which is a folder with {MANIFEST}: give another path, or the name of a "
            f"shipped bundle ({', '.join(names()) or 'none is here'})"
        )
    return path


def found(bundle: str) -> Path:
    """The folder at this path if a bundle is there; else as `folder`, by a shipped bundle's name."""
    return Path(bundle) if (Path(bundle) / MANIFEST).is_file() else folder(bundle)


def path(bundle: str) -> Path:
    """The path of a shipped bundle where this is its name and no bundle is at this path; for parsers."""
    here = (Path(bundle) / MANIFEST).is_file()
    return _root() / bundle if not here and bundle in names() else Path(bundle)


def _root() -> Path:
    installed = _PACKAGE / "_bundles"
    return installed if installed.is_dir() else _PACKAGE.parent / "model_store"
