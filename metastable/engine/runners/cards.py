"""The card of an artifact: what it is, what it was made from, and how near it is to its bundle.

`card.json` lies beside the files.  It has no date and no name of a machine; equal artifacts have equal cards.

    schema      1
    artifact    its kind (`export.kinds.KINDS`)
    key         SHA-256 of everything that decides what the artifact is and how it was judged
    bundle      name of the bundle
    weights     SHA-256 of the bundle's parts: an artifact is of these weights, whatever the settings
    type        of the convolutions
    made_with   versions of the packages that wrote it
    graphs      by name: inputs and outputs with shapes and meanings
    files       by name: bytes and SHA-256
    parity      `export.parity.measure`, or null with `unjudged` saying why
    tolerance   what it was judged by
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metastable.bundle import files
from metastable.engine.runners.artifacts import PACKAGES, SUFFIXES
from metastable.errors import BundleError

SCHEMA = 1
CARD = "card.json"
BYTES = 2**20


def render(card: Mapping[str, Any]) -> bytes:
    """card.json: equal cards give equal bytes."""
    return (json.dumps({"schema": SCHEMA, **card}, indent=2, allow_nan=False) + "\n").encode()


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """`files` of a card: what lies in the folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != CARD:
            data = path.read_bytes()
            found[path.name] = {"bytes": len(data), "sha256": files.digest(data)}
    return found


def read(folder: Path) -> dict[str, Any]:
    """The card in a folder; BundleError if there is none, or its files are not those that it lists."""
    raw = files.read(folder, CARD, BYTES)
    try:
        card = json.loads(raw)
        wanted = {name: one["sha256"] for name, one in card["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{CARD} of {folder.name} is damaged: export the artifact again") from None
    if card.get("schema") != SCHEMA:
        raise BundleError(f"{CARD} of {folder.name} is not of schema {SCHEMA}: export the artifact again")
    have = {path.name for path in folder.iterdir()} - {CARD}
    if have != set(wanted):
        raise BundleError(f"{folder.name} must hold {sorted(wanted)}, and holds {sorted(have)}")
    for name, digest in wanted.items():
        if files.digest(files.read(folder, name, files.PART_BYTES)) != digest:
            raise BundleError(
                f"{name} of {folder.name} does not match its SHA-256 in {CARD}: export it again"
            )
    found: dict[str, Any] = card
    return found


def packed(
    folder: Path, kind: str, weights: Mapping[str, str], versions: Mapping[str, str]
) -> dict[str, bytes]:
    """The files that a runner reads of an artifact, by name.

    Args:
        folder: of the artifact; `kind` is what it must be.
        weights: SHA-256 of the parts of the bundle that it must be of.
        versions: entries of its `made_with` that must be these.

    Raises BundleError if it is not there, damaged, or of something else.
    """
    if not (folder / CARD).is_file():
        raise BundleError(
            f"there is no artifact {kind} in {folder.parent}: make it with "
            f"`metastable export all --only {kind} --out {folder.parent}`"
        )
    card = read(folder)
    if card.get("artifact") != kind or card.get("weights") != weights:
        raise BundleError(f"artifact {folder} is of another kind or of other weights: export it again")
    for package, version in versions.items():
        if card["made_with"].get(package) != version:
            raise BundleError(f"artifact {folder} was not made for {package} {version}: export it again")
    return {name: (folder / name).read_bytes() for name in card["files"] if name.endswith(SUFFIXES[kind])}


def versions_here(kind: str) -> dict[str, str]:
    """What an artifact of a kind must have been made with to run here: machine code calls PyTorch's."""
    if kind != PACKAGES:
        return {}
    return {"torch": importlib.metadata.version("torch"), "processor": processor()}


def processor() -> str:
    """What the processor can do, as PyTorch's compilers see it: machine code is for such ones."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
