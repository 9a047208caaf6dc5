"""A folder of pictures as a data set: walked, shared out, cut and decoded, with or without labels.

Whole pictures belong to one split, by a hash of the seed and the file's name: a picture that comes later
moves few others.  They are decoded when they are taken, as the server decodes what it is sent; those that
cannot be are named, counted and skipped.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metastable import reading
from metastable.datasets import labels as csv
from metastable.datasets.base import SPLITS, ImageSet, Shape, check_range, to_float
from metastable.datasets.windows import hashed, window
from metastable.errors import DataError, RequestError
from metastable.images import STRETCH, Fit, ImageLimits, decode
from metastable.walk import walk

LIMITS = ImageLimits(max_bytes=64_000_000, max_pixels=50_000_000)
"""Of a picture: what cameras make, and nothing that fills the memory."""
IN_MEMORY = 2**30
"""Bytes of decoded pictures; more of them lie in a temporary file."""
MOST = 10_000_000
"""Images of a split: their order is drawn at once."""
NAMED = 20
"""Skipped files whose names are told; the others are counted."""
BATCH = 64
CLASSIFIER = "the bare classifier's label of the clean image"
"""What stands in for labels, in the words of outputs."""
AGREEMENT = f"agreement with {CLASSIFIER}"
"""What an accuracy is on pictures that nobody labelled."""

Labeller = Callable[[Tensor], Tensor]
"""Images float32 [B, C, H, W] in [0, 1] -> labels int64 [B], for pictures that nobody labelled."""


def labeller_of(classifier: Callable[[Tensor], Tensor]) -> Labeller:
    """The labels that a classifier gives to clean images: the largest of its logits [B, classes]."""

    @torch.no_grad()
    def label(images: Tensor) -> Tensor:
        return classifier(images).argmax(1)

    return label


@dataclass(frozen=True)
class File:
    """A picture: its name relative to the folder, with slashes, and its label, -1 where it has none."""

    name: str
    label: int = -1


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of pictures.

    Attributes:
        path: the folder.
        shape: of every image that is made of a picture.
        fit: how a whole picture comes to have it; windows have its proportions, and are resized alike.
        labels: a CSV file (metastable.datasets.labels); only the pictures that it names are then taken.
        names: of the classes, in the order of their numbers; empty where the labels are to say.
        test_share: share of the pictures that makes the split `test`, in [0, 1].
        seed: of what goes into which split, and of the windows.
        crops: windows that are cut out of a picture at random places and scales, each one image; 0 takes
            the whole picture, as the server does.
        mirrored: whether training may mirror the images.
        labeller: gives the labels where there is no CSV file; without it they are -1.
        seen: called with `ImageSet.about` of all images that were made.

    Raises DataError for numbers that cannot be.
    """

    path: Path
    shape: Shape
    fit: Fit = STRETCH
    labels: Path | None = None
    names: tuple[str, ...] = ()
    test_share: float = 0.2
    seed: int = 0
    crops: int = 0
    mirrored: bool = True
    labeller: Labeller | None = None
    seen: Callable[[Mapping[str, Any]], None] = lambda about: None

    def __post_init__(self) -> None:
        if not 0 <= self.test_share <= 1:
            raise DataError(f"the share of test pictures must lie in [0, 1], not be {self.test_share:g}")
        if min(self.crops, self.seed) < 0:
            raise DataError(f"crops and seed must not be negative, as {self.crops} or {self.seed} is")

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def inputs(self) -> str:
        """What says in a configuration which images they are: another folder or cut has another text."""
        return f"folder {self.name} {self.split('train').digest()[:16]}"

    @cached_property
    def _labels(self) -> csv.Labels | None:
        return None if self.labels is None else csv.read(self.labels, self.names)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where nobody gave any."""
        return self.names or (self._labels.classes if self._labels else ())

    @cached_property
    def _walked(self) -> tuple[list[str], int]:
        return walk(self.path)

    @cached_property
    def files(self) -> tuple[File, ...]:
        """The pictures of both splits, in the order of their names.

        Raises DataError where there are none, or a label is of a file that is not there.
        """
        there, _ = self._walked
        if self._labels is None:
            return tuple(map(File, there))
        known = set(there)
        for name, label in self._labels.by_file.items():
            if name not in known:
                raise DataError(
                    f"{self.labels}, line {label.line}: there is no picture {name} in {self.path}"
                    + csv.hint(name)
                )
        return tuple(File(n, self._labels.by_file[n].number) for n in there if n in self._labels.by_file)

    def split(self, name: str) -> Split:
        """The split `train` or `test`; DataError where nothing is in it."""
        if name not in SPLITS:
            raise DataError(f"a folder has no split {name!r}: use {' or '.join(SPLITS)}")
        ranked = sorted(self.files, key=lambda file: hashed(self.seed, file.name))
        count = round(self.test_share * len(ranked))
        if 0 < self.test_share < 1 and len(ranked) > 1:
            count = min(max(count, 1), len(ranked) - 1)
        chosen = ranked[:count] if name == "test" else ranked[count:]
        if not chosen:
            raise DataError(
                f"{self.path} has {len(ranked)} pictures, and with a share of {self.test_share:g} for tests "
                f"none of them is for {name}: change --test-share, or add pictures"
            )
        if len(chosen) * self.crops > MOST:
            raise DataError(
                f"{self.crops} crops of {len(chosen)} pictures are over {MOST} images: take fewer --crops"
            )
        return Split(self, name, chosen)

    def about(self) -> dict[str, Any]:
        """How its images come to be, ready for JSON."""
        told = "none"
        if self.labels is not None:
            told = self.labels.name
        elif self.labeller is not None:
            told = CLASSIFIER
        fitted = {} if self.fit == STRETCH else {"fit": asdict(self.fit)}
        return fitted | {
            "folder": self.name,
            "pictures": len(self.files),
            "left_out": {"links": self._walked[1], "unlabelled": len(self._walked[0]) - len(self.files)},
            "labels": told,
            "shape": list(self.shape),
            "test_share": self.test_share,
            "split_seed": self.seed,
            "crops": self.crops,
        }


@dataclass(frozen=True)
class Split:
    """One split of a folder: images that are decoded when they are asked for."""

    folder: Folder
    name: str
    files: list[File]

    def __len__(self) -> int:
        """Images, those that turn out to be damaged among them."""
        return len(self.files) * self._each

    @property
    def _each(self) -> int:
        return max(1, self.folder.crops)

    def take(self, n: int, *, skip: int = 0, seed: int = 0) -> ImageSet:
        """As `ImageSet.take`, decoding no more than it must; what cannot be decoded is not counted.

        Raises DataError where no picture can be.
        """
        check_range(n, skip)
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        return self._gathered(order, n, skip)

    def whole(self) -> ImageSet:
        """All images, windows of a picture beside each other; DataError where no picture can be decoded."""
        return self._gathered(range(len(self)), len(self), 0)

    def digest(self) -> str:
        """SHA-256 over the bytes of the files, their labels, and how images are made of them."""
        h = hashlib.sha256(json.dumps([self.folder.about(), self.name], sort_keys=True).encode())
        for file in self.files:
            try:
                content = hashlib.sha256(self._bytes(file.name)).hexdigest()
            except OSError:  # skipped, and named, when it is to be decoded
                content = ""
            h.update(json.dumps([file.name, file.label, content]).encode())
        return h.hexdigest()

    def _gathered(self, order: Iterable[int], n: int, skip: int) -> ImageSet:
        store, labels, seen = _room(min(n, len(self)), self.folder.shape), list[int](), 0
        skipped: dict[str, str] = {}
        for image, label in islice(self._decoded(order, skipped), skip + n):
            if seen >= skip:
                store[len(labels)] = image
                labels.append(label)
            seen += 1
        if n and not seen:
            shown = "; ".join(f"{name} ({why})" for name, why in islice(skipped.items(), NAMED))
            raise DataError(f"none of {len(skipped)} pictures in {self.folder.path} can be used: {shown}")
        return self._set(store[: len(labels)], labels, skipped)

    def _decoded(self, order: Iterable[int], skipped: dict[str, str]) -> Iterator[tuple[Tensor, int]]:
        """uint8 images [C, H, W] and labels; what cannot be decoded goes into `skipped`, with why."""
        for index in order:
            at, crop = divmod(index, self._each)
            file = self.files[at]
            if file.name in skipped:
                continue
            try:
                yield self._image(file.name, crop), file.label
            except OSError as error:
                skipped[file.name] = error.strerror or str(error)
            except RequestError as error:  # what a server would tell a client
                skipped[file.name] = str(error)

    def _image(self, name: str, crop: int) -> Tensor:
        channels, height, width = self.folder.shape
        cut, fit = None, self.folder.fit
        if self.folder.crops:
            fit = Fit(interpolation=fit.interpolation)
            cut = window(self.folder.seed, name, crop, height, width)
        read = decode(
            self._bytes(name), size=(height, width), channels=channels, fit=fit, limits=LIMITS, window=cut
        )
        return (255 * read.pixels).round().byte()

    def _bytes(self, name: str) -> bytes:
        return reading.read(self.folder.path / name, LIMITS.max_bytes)

    def _set(self, images: Tensor, labels: list[int], skipped: dict[str, str]) -> ImageSet:
        folder = self.folder
        found = torch.tensor(labels, dtype=torch.int64)
        if folder.labels is None and folder.labeller is not None and len(images):
            found = torch.cat([folder.labeller(to_float(part)) for part in torch.split(images, BATCH)]).long()
        told = {"skipped": len(skipped), "skipped_files": dict(islice(skipped.items(), NAMED))}
        about = folder.about() | {"split": self.name, "images": len(images), **told}
        folder.seen(about)
        labelled = folder.labels is not None
        return ImageSet(folder.name, self.name, images, found, list(folder.classes), labelled, about)


def _room(n: int, shape: Shape) -> Tensor:
    """uint8 [n, *shape]; above IN_MEMORY in a temporary file, of which the system keeps what it can."""
    if n * math.prod(shape) <= IN_MEMORY:
        return torch.empty(n, *shape, dtype=torch.uint8)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=(n, *shape)))
