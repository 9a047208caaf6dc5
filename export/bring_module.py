"""A PyTorch module of one's own behind the purification, from Python: `metastable.bring`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from export import adapt
from export.newcomer import Newcomer
from export.plan import Plan, carry_out
from export.tune import Wanted
from metastable.bundle import shipped
from metastable.datasets import Folder
from metastable.images import Fit


def bring(
    module: nn.Module,
    *,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    images: Path | str,
    out: Path | str,
    labels: Path | str | None,
    classes: Path | str | None,
    fit: Fit | None,
    base: str,
    budget_ms: float,
    minutes: float,
) -> Path:
    """See metastable.bring, which loads what this writes; the arguments are those.  Gives `out`."""
    with tempfile.TemporaryDirectory(prefix="metastable-bring-") as folder:
        file = Path(folder) / f"{type(module).__name__}.onnx"
        file.write_bytes(adapt.from_module(module, shape))
        newcomer = Newcomer(
            file,
            classes=Path(classes) if classes else None,
            mean=tuple(mean),
            std=tuple(std),
            fit=fit,
            wishes=adapt.Wishes(order="rgb", size=shape[1:]),
        )
        pictures = Folder(path=Path(images), shape=shape, labels=Path(labels) if labels else None)
        carry_out(
            Plan(
                newcomer,
                shipped.found(base),
                Path(out),
                Path(out).resolve().name,
                pictures,
                wanted=Wanted(budget_ms=budget_ms),
                minutes=minutes,
            )
        )
    return Path(out)
