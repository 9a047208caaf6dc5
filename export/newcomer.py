"""A classifier as its owner declares it, and what files beside it declare."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export import preprocessing
from export.adapt import Adapted, Wishes
from export.preprocessing import Preprocessing
from metastable.errors import BundleError, DataError
from metastable.images import Fit

WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Newcomer:
    """A classifier as its owner declares it; what is None is read from files beside it, or found out.

    Attributes:
        file: an ONNX graph, or a safetensors state dict of `network`.
        network: of a state dict: `whitened` or `wrn-<depth>-<width>`.
        classes: file of class names in the order of the logits.
        mean, std: by channel, of values in the range that the graph takes (Wishes.range, else [0, 1]): it was
            trained on (x - mean) / std.
        fit: how a picture becomes an image of its size.
        wishes: what is said of the graph, its height and width among it.
    """

    file: Path
    network: str = "whitened"
    classes: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: Fit | None = None
    wishes: Wishes = field(default_factory=Wishes)

    def command(self) -> str:
        """What was run, with the last names of paths."""
        given = [self.file.name]
        if self.file.suffix == WEIGHTS:
            given += ["--network", self.network]
        given += ["--classes", self.classes.name] if self.classes else []
        wished = dataclasses.asdict(self.wishes) | {"mean": self.mean, "std": self.std}
        for key, value in wished.items():
            if value is not None:
                listed = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
                text = ("x" if key == "size" else ",").join(
                    f"{one:g}" if isinstance(one, float | int) else one for one in listed
                )
                given += [f"--{key}", text]
        if self.fit:
            given += ["--fit", self.fit.mode, "--fit-share", f"{self.fit.share:g}"]
            given += ["--interpolation", self.fit.interpolation]
        return " ".join(["metastable bring", *given])


def declared(newcomer: Newcomer) -> Preprocessing | None:
    """What files beside the model declare, where the owner does not say all of it."""
    if newcomer.mean and newcomer.std and newcomer.fit:
        return None
    try:
        return preprocessing.beside(newcomer.file)
    except DataError as error:
        raise DataError(f"{error}; to do without it give --mean, --std and --fit") from None


def wishes(newcomer: Newcomer, found: Preprocessing | None) -> Wishes:
    """The owner's wishes, and where they say nothing what is declared."""
    wished = newcomer.wishes
    if found is not None:
        wished = dataclasses.replace(
            wished, size=wished.size or found.size, order=wished.order or ("bgr" if found.bgr else None)
        )
    return wished


def normalized(newcomer: Newcomer, adapted: Adapted, found: Preprocessing | None) -> Adapted:
    """With the mean and std that are given or declared, if they are.

    Raises BundleError for numbers that cannot be, or of another number of channels.
    """
    mean, std = newcomer.mean, newcomer.std
    if (mean is None) != (std is None):
        raise BundleError("--mean and --std belong together: give both")
    if mean is not None and std is not None:
        check_normalization(mean, std, adapted.channels)
        # In the range that the graph takes: of one that takes 0 to 255, 0 and 1 say that it does the rest.
        made = [
            (own + given * scale, spread * scale)
            for own, scale, given, spread in zip(adapted.mean, adapted.std, mean, std, strict=True)
        ]
        mean, std = tuple(one for one, _ in made), tuple(one for _, one in made)
    elif found is not None:
        mean, std = found.normalization(adapted.channels)
    else:
        return adapted
    left = tuple(one for one in adapted.undecided if one not in ("range", "normalization"))
    return dataclasses.replace(adapted, mean=mean, std=std, undecided=left)


def check_normalization(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raises BundleError for numbers that cannot be, or of another number of channels."""
    if len(mean) != channels or len(std) != channels:
        raise BundleError(f"--mean and --std need {channels} numbers each, for the channels")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise BundleError("--mean and --std must be finite numbers, and std above 0")
