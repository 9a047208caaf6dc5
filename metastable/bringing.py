"""`metastable.bring`: a PyTorch module of one's own behind the purification."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from metastable.errors import MissingPackage
from metastable.images import Fit
from metastable.library import Defense, load

ABOVE = "export.bring_module"
"""What stands above the library and writes bundles: a checkout has it, and a wheel has not."""


def bring(
    module: nn.Module,
    *,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    images: Path | str,
    out: Path | str,
    labels: Path | str | None = None,
    classes: Path | str | None = None,
    fit: Fit | None = None,
    base: str = "natural",
    budget_ms: float = 300.0,
    minutes: float = 0.0,
) -> Defense:
    """Export a module, put a purifier before it, calibrate and judge that on pictures, and load it.

        defense = metastable.bring(
            module, shape=(3, 224, 224), mean=mean, std=std, images="photos", out="mine"
        )

    What `metastable bring` does with a graph; what it finds is printed, and the report lies in `out`.

    Args:
        module: float images [B, *shape], normalized, to logits [B, classes]; it is not changed.
        shape: channels (1 or 3), height and width.
        mean, std: by channel; it was trained on (x - mean) / std of images x in [0, 1].
        images: folder of pictures of the kind that will be sent; a fifth of them judges.
        out: folder of the new bundle.
        labels: CSV file of the pictures' classes; else the module's own answers are what is to be kept.
        classes: file of class names.
        fit: how a picture becomes an image; stretched unless it is said.
        base: a shipped bundle that purifies, or the path of one.
        budget_ms: milliseconds of an answer on this machine.
        minutes: to train the purifier for this module.

    Raises BundleError for a module that cannot be exported rightly or fails a check, DataError for pictures
    that cannot be used, MissingPackage outside a checkout.
    """
    try:
        there = importlib.import_module(ABOVE)
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"metastable.bring needs {error.name}: run it in a checkout, with its environment (make install)"
        ) from None
    folder: Path = there.bring(
        module,
        shape=shape,
        mean=mean,
        std=std,
        images=images,
        out=out,
        labels=labels,
        classes=classes,
        fit=fit,
        base=base,
        budget_ms=budget_ms,
        minutes=minutes,
    )
    return load(folder)
