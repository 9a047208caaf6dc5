"""Attack sets: images as they are served, with labels, clean originals and how they were made.

One `.npz` file (NumPy's zip of arrays, nothing pickled):

    images     float32 [N, C, H, W] in [0, 1], exactly what is sent
    originals  float32 [N, C, H, W], the clean images that the attack started from
    labels     int64 [N], true classes
    index      int64 [N], place in the data set's order: pairs the images of sets
    success    bool [N], whether the maker's own check counted the attack as a success
    about      the fields of `About` as JSON text
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metastable.errors import DataError

FORMAT = "metastable-attack-set 1"
CLEAN = "clean"
ARRAYS = {"images": "float32", "originals": "float32", "labels": "int64", "index": "int64", "success": "bool"}
MAX_BYTES = 4 * 2**30  # unpacked, so that a small file cannot fill the memory
# What NumPy and zipfile raise on damaged files: neither says.
_DAMAGE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
SLACK = 1e-6  # float32 rounding of image + eps; on the l2 norm relative to eps


@dataclass(frozen=True, kw_only=True)
class About:
    """How a set was made.

    Attributes:
        attack: a name of metastable.attacks.catalogue, or `clean`.
        setting: what was attacked; empty for clean images.
        parameters, gradient: the attack with all its values, and how it came by its gradient.
        norm, eps: the ball that every image is in.
        bundle: digest of the attacked bundle.
        data: name, split and SHA-256 of the images, and how many of the order were left out.
        classes: their names in order.
    """

    attack: str
    norm: str = "linf"
    eps: float = 0.0
    setting: str = ""
    parameters: str = ""
    gradient: str = ""
    seed: int = 0
    bundle: str = ""
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttackSet:
    """See the module.  Raises DataError, naming the image, for anything that does not fit together."""

    images: NDArray[np.float32]
    originals: NDArray[np.float32]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]
    success: NDArray[np.bool_]
    about: About

    def __post_init__(self) -> None:
        n = len(self.labels)
        for name, dtype in ARRAYS.items():
            array = getattr(self, name)
            dims = 4 if name in ("images", "originals") else 1
            if array.dtype != dtype or array.ndim != dims or len(array) != n:
                raise DataError(f"{name} must be {dtype} with {n} rows and {dims} dimensions: {array.shape}")
        if not n or self.images.shape != self.originals.shape or self.images.shape[1] not in (1, 3):
            raise DataError(
                f"images must be like originals, [N >= 1, 1 or 3, H, W], not {list(self.images.shape)}"
            )
        for name in ("images", "originals"):
            outside = ~((getattr(self, name) >= 0) & (getattr(self, name) <= 1)).all(axis=(1, 2, 3))
            if outside.any():
                raise DataError(f"{name}: image {outside.argmax()} has values outside [0, 1]")
        known = len(self.about.classes) or self.labels.max() + 1
        if self.labels.min() < 0 or self.labels.max() >= known:
            raise DataError(f"labels must be in 0..{known - 1}")
        self._check_ball()

    def _check_ball(self) -> None:
        """Whether every image is in its ball (a clean image is its original)."""
        about, distance = self.about, self.distances()
        if about.norm not in ("linf", "l2") or not 0 <= about.eps < float("inf"):
            raise DataError(f"the ball must be linf or l2 with a finite eps, not {about.norm} {about.eps}")
        slack = SLACK * (1 if about.norm == "linf" else max(1.0, about.eps))
        allowed = 0.0 if about.attack == CLEAN else about.eps + slack
        worst = int(distance.argmax())
        if distance[worst] > allowed:
            raise DataError(
                f"image {worst} is {distance[worst]:.6f} from its original in the {about.norm} norm, "
                f"outside the ball of {allowed:.6f}"
            )

    def distances(self) -> NDArray[np.float64]:
        """[N], from each image to its original in the norm of the ball."""
        offset = np.abs(self.images.astype(np.float64) - self.originals).reshape(len(self), -1)
        return np.asarray(np.linalg.norm(offset, np.inf if self.about.norm == "linf" else 2, axis=1))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 over images and labels."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def save(path: Path, made: AttackSet) -> None:
    """Write the file (compressed), by way of a temporary one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: getattr(made, name) for name in ARRAYS}
    about = json.dumps({"format": FORMAT, **dataclasses.asdict(made.about)})
    half = path.with_suffix(".writing.npz")
    np.savez_compressed(half, about=np.array(about), allow_pickle=False, **arrays)
    half.replace(path)


def load(path: Path) -> AttackSet:
    """Read and check a set; raises DataError that says what is wrong with the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"{path} unpacks to {size} bytes, above {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != {*ARRAYS, "about"}:
                raise DataError(f"{path} holds {sorted(file.files)}, not {sorted([*ARRAYS, 'about'])}")
            arrays = {name: file[name] for name in ARRAYS}
            about = _about(json.loads(str(file["about"])))
    except FileNotFoundError:
        raise DataError(f"there is no attack set {path}: `metastable loadtest make` writes one") from None
    except _DAMAGE as error:
        raise DataError(f"{path} is not an attack set: {error}") from None
    try:
        return AttackSet(**arrays, about=about)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _about(fields: dict[str, Any]) -> About:
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"`about` is not of the format {FORMAT!r}")
    kinds = {"eps": (int, float), "seed": (int,), "data": (dict,), "classes": (list,)}
    for name, value in fields.items():
        if not isinstance(value, kinds.get(name, (str,))):
            raise ValueError(f"`about` has {name} of the wrong type")
    return About(**{**fields, "classes": tuple(map(str, fields.get("classes", ())))})
