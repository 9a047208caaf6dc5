"""The images of a set that a command asks for, by --n and --skip."""

from __future__ import annotations

from metastable.datasets import Images, ImageSet
from metastable.errors import DataError


def portion(images: Images, n: int, *, skip: int = 0, option: str = "--n") -> ImageSet:
    """Exactly n images, after the first `skip` of the set's fixed order; `option` is what n came by.

    Raises DataError for less than one image, or more than are left: figures of another n than was asked for
    would look like those that were.
    """
    if n < 1:
        raise DataError(f"{option} must be 1 or more, not {n}")
    left = max(len(images) - skip, 0)
    if n > left:
        after = f" after --skip {skip}" if skip else ""
        raise DataError(
            f"there are {left} images{after}, not {n}: give a lower {option}" + (" or --skip" if skip else "")
        )
    found = images.take(n, skip=skip)
    if len(found) < n:
        raise DataError(f"only {len(found)} of {left} pictures can be read, not {n}: give a lower {option}")
    return found
