"""What a run sends: items drawn from attack sets, mixes of them, and folders of labelled images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest import sets
from metastable.datasets import labels
from metastable.errors import DataError

LABELS = "labels.csv"


@dataclass(frozen=True)
class Item:
    """One image to send.

    Attributes:
        body: the file as it is sent.
        label: its true class.
        source: name of the set or folder it is from; `row` is its place there.
        index: its original's place in the data set, equal for attacked and clean copies; -1 if unknown.
    """

    body: bytes
    label: int
    source: str
    row: int
    index: int = -1


@dataclass(frozen=True)
class Source:
    """A set or folder: its items, the attack (`clean` for none) and what the report says of it."""

    name: str
    attack: str
    items: list[Item]
    about: dict[str, object]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One part of a mix; a share of None means every image of it once."""

    path: Path
    share: float | None


def parse_mix(text: str, folder: Path) -> list[Part]:
    """`clean:0.9,pgd:0.1` or `clean,pgd`: names of sets in `folder`, or paths, and shares that sum to 1.

    Raises DataError for anything else.
    """
    parts = []
    for word in text.split(","):
        name, colon, share = word.strip().rpartition(":")
        name = name if colon else share
        if not name or "\0" in name:
            raise DataError(f"{text!r} is not of the form clean:0.9,pgd:0.1")
        try:
            parts.append(Part(_find(name, folder), float(share) if colon else None))
        except ValueError:
            raise DataError(f"the share of {name!r} must be a number, not {share!r}") from None
    shares = [part.share for part in parts if part.share is not None]
    if shares and (
        len(shares) != len(parts) or not all(0 < s <= 1 for s in shares) or abs(sum(shares) - 1) > 1e-6
    ):
        raise DataError("shares are given for all sets or for none, are above 0, and sum to 1")
    if len({part.path for part in parts}) != len(parts):
        raise DataError("a set is named twice in the mix")
    return parts


def _find(name: str, folder: Path) -> Path:
    given = Path(name)
    return given if given.suffix == ".npz" or given.is_dir() else folder / f"{name}.npz"


def read(path: Path) -> Source:
    """The source at a path: an attack set, or a folder of images with labels.csv."""
    return _folder(path) if path.is_dir() else _set(path)


def _set(path: Path) -> Source:
    loaded = sets.load(path)
    rows = zip(loaded.images, loaded.labels.tolist(), loaded.index.tolist(), strict=True)
    items = [Item(npy(image), label, path.stem, row, index) for row, (image, label, index) in enumerate(rows)]
    about = loaded.about
    told: dict[str, object] = {
        "file": path.name,
        "digest": loaded.digest,
        "attack": about.attack,
        "setting": about.setting,
        "parameters": about.parameters,
        "gradient": about.gradient,
        "norm": about.norm,
        "eps": about.eps,
        "largest_distance": round(float(loaded.distances().max()), 6),
        "seed": about.seed,
        "bundle": about.bundle,
        "data": about.data,
    }
    return Source(path.stem, about.attack, items, told, about.classes)


def _folder(path: Path) -> Source:
    """Images named in labels.csv (metastable.datasets.labels), taken for clean."""
    items = []
    found = labels.read(path / LABELS)
    if not found.numbered:
        raise DataError(
            f"{path / LABELS} has names of classes: give their numbers, which a server answers with"
        )
    for row, (name, label) in enumerate(found.by_file.items()):
        where, image = f"{path / LABELS}, line {label.line}", (path / name).resolve()
        if not image.is_relative_to(path.resolve()):
            raise DataError(f"{where}: {name} is a link that leads out of the folder")
        try:
            items.append(Item(image.read_bytes(), label.number, path.name, row))
        except OSError as error:
            raise DataError(f"{where}: {name} cannot be read: {error.strerror}") from None
    return Source(path.name, sets.CLEAN, items, {"file": path.name, "attack": sets.CLEAN})


def npy(image: NDArray[np.float32]) -> bytes:
    """Exact pixels of an image [C, H, W] as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, image, allow_pickle=False)
    return buffer.getvalue()


def draw(sources: Sequence[Source], shares: Sequence[float | None], n: int | None, seed: int) -> list[Item]:
    """n items in an order that the seed fixes; without shares every item once, at most n of them.

    With shares each source gives its part of n (largest remainders), starting over where it is short.
    n of None stands for as many as the sources hold.
    """
    rng = np.random.default_rng(seed)
    total = sum(len(source.items) for source in sources)
    counts = [len(source.items) for source in sources]
    wanted = [share for share in shares if share is not None]
    if wanted:
        counts = _apportion(wanted, n or total)
    chosen = []
    for source, count in zip(sources, counts, strict=True):
        order = rng.permutation(len(source.items))
        chosen += [source.items[order[i % len(order)]] for i in range(count)]
    mixed = [chosen[i] for i in rng.permutation(len(chosen))]
    return mixed[:n]


def _apportion(shares: Sequence[float], n: int) -> list[int]:
    """Whole numbers that sum to n, each its share of n rounded down or up."""
    counts = [math.floor(share * n + 1e-9) for share in shares]
    remainders = [share * n - count for share, count in zip(shares, counts, strict=True)]
    for i in sorted(range(len(shares)), key=lambda i: -remainders[i])[: n - sum(counts)]:
        counts[i] += 1
    return counts
