"""Every artifact of a bundle that can exist on this machine, judged and with its card.

Each kind has a folder of its own.  It is written aside, judged there, and put in its place only if it is in
tolerance: what is refused leaves nothing behind.  An artifact whose card shows that nothing has changed is
kept as it is, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from export import parity, tensorrt
from export.kinds import KINDS, Materials
from export.signatures import signature
from metastable.bundle import files
from metastable.engine.runners import artifacts, cards
from metastable.errors import BundleError, SettingsError


@dataclass(frozen=True)
class Built:
    """What became of a kind: `made`, `kept` or `skipped`, and why; how long building and judging took."""

    kind: str
    state: str
    reason: str = ""
    bytes: int = 0
    build_seconds: float = 0.0
    judge_seconds: float = 0.0


def build(source: Materials, out: Path, kinds: Sequence[str] = tuple(KINDS)) -> list[Built]:
    """Write the artifacts of these kinds into folders of `out`; what cannot be made here is skipped.

    Raises SettingsError for an unknown kind, BundleError naming an artifact that is refused.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise SettingsError(f"there are no artifacts {unknown}: choose from {', '.join(KINDS)}")
    out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name in tqdm(kinds, desc="artifacts", mininterval=2):
        reason = KINDS[name].missing(source)
        outcomes.append(Built(name, "skipped", reason) if reason else _one(source, out / name, name))
    return outcomes


def _one(source: Materials, folder: Path, name: str) -> Built:
    kind, key = KINDS[name], _key(source, name)
    card: dict[str, Any] = {
        "artifact": name,
        "key": key,
        "bundle": source.bundle.name,
        "weights": source.bundle.parts,
        "type": kind.dtype,
        "made_with": _made_with(name),
    }
    if _is_there(folder, key):
        return Built(name, "kept", bytes=_size(folder))
    aside = folder.with_name(f".{name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        started = time.perf_counter()
        made = kind.write(source, aside)
        built = time.perf_counter() - started
        card |= {"graphs": {k: signature(v) for k, v in made.items()}, "files": cards.listed(aside)}
        card |= {"parity": None, "unjudged": "nothing here runs it: it needs a GPU"}
        started = time.perf_counter()
        if kind.judge is not None:
            figures = kind.judge(source, aside)
            parity.judge(name, figures, kind.dtype)
            card |= {"parity": figures, "unjudged": ""}
        judged = time.perf_counter() - started
        card["tolerance"] = vars(parity.TOLERANCES[kind.dtype])
        (aside / cards.CARD).write_bytes(cards.render(card))
        # What lay here before is of other weights, or was judged by other images.
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Built(name, "made", "", _size(folder), built, judged)


def _is_there(folder: Path, key: str) -> bool:
    try:
        return bool(cards.read(folder)["key"] == key)
    except (BundleError, KeyError, OSError):
        return False


def _key(source: Materials, name: str) -> str:
    told = {
        "bundle": source.bundle.digest,
        "calibration": None if source.calibration is None else _digest(source.calibration),
        "real": _digest(source.real),
        "made_with": _made_with(name),
        "tolerance": vars(parity.TOLERANCES[KINDS[name].dtype]),
    }
    return files.digest(json.dumps([name, told], sort_keys=True).encode())


def _made_with(name: str) -> dict[str, str]:
    versions = {package: importlib.metadata.version(package) for package in KINDS[name].packages}
    if name == artifacts.PACKAGES:
        return versions | {"processor": cards.processor()}
    return versions | {"tensorrt": tensorrt.version()} if name.startswith("tensorrt") else versions


def _digest(images: Tensor) -> str:
    return files.digest(images.contiguous().numpy().tobytes())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != cards.CARD)
