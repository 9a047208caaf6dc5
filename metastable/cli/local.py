"""Verdicts in this process, for the commands that need no server."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metastable import bundle, reading
from metastable.bundle import Bundle
from metastable.engine.reply import reply
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import RequestError, SettingsError
from metastable.images import DEFAULT_LIMITS, STRETCH, DecodedImage, Fit, ImageLimits, decode
from metastable.library import Defense
from metastable.settings import Setting, Settings

AT_ONCE = 32


@dataclass(frozen=True)
class Answered:
    """What became of one image: the body that a server would send, and the mean purified image [C, H, W]."""

    verdict: dict[str, Any]
    purified: Tensor


def load(folder: Path, setting: str | None) -> Bundle:
    """A bundle with this setting alone, its default for None.

    Raises BundleError for one without a calibration, SettingsError for a setting that it does not have.
    """
    loaded = bundle.load(folder)
    chosen = setting_of(loaded.settings, setting)
    only = dataclasses.replace(loaded.settings, by_name={chosen.name: chosen}, default=chosen.name)
    return dataclasses.replace(loaded, settings=only, anomaly=loaded.calibration)


def setting_of(settings: Settings, name: str | None) -> Setting:
    """The setting of this name, the default for None; SettingsError if there is none."""
    name = name or settings.default
    if name not in settings.names:
        raise SettingsError(f"there is no setting {name!r}: choose from {', '.join(settings.names)}")
    return settings[name]


def read(paths: Sequence[Path], loaded: Bundle) -> list[DecodedImage]:
    """Image files as a bundle's images.

    Raises the RequestError that a server would answer, with the file's name, and OSError.
    """
    channels, height, width = loaded.shape
    return [decoded(path, size=(height, width), channels=channels, fit=loaded.fit) for path in paths]


def contents(path: Path, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of an image file; OSError, which names it, where it cannot be one."""
    try:
        return reading.read(path, limits.max_bytes)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def decoded(
    path: Path,
    *,
    size: tuple[int, int] | None,
    channels: int,
    fit: Fit = STRETCH,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> DecodedImage:
    """One image file, as `read`; with None for a size it keeps its own."""
    try:
        return decode(contents(path, limits), size=size, channels=channels, fit=fit, limits=limits)
    except RequestError as error:
        raise type(error)(f"{path}: {error}") from None


def answer(loaded: Bundle, images: Sequence[DecodedImage], top_k: int = 3) -> list[Answered]:
    """The verdicts of a bundle that `load` gave, with fresh noise."""
    return list(answers(loaded, images, top_k, at_once=len(images)))


def answers(
    loaded: Bundle, images: Iterable[DecodedImage], top_k: int = 3, *, at_once: int = AT_ONCE
) -> Iterator[Answered]:
    """The same for images that come one by one, of which `at_once` are held and answered together."""
    shown, left = min(top_k, len(loaded.classes)), iter(images)
    with Defense(loaded, TorchRunner(loaded.networks, loaded.classifier)) as defense:
        defense.prepare(loaded.settings.default)
        while held := list(itertools.islice(left, at_once)):
            started = time.perf_counter()
            found = defense.purify(torch.stack([image.pixels for image in held]))
            each = round(1e3 * (time.perf_counter() - started) / len(held), 3)
            said = {"runner": defense.runner, "timings_ms": {"total": each}}
            for image, (verdict, purified) in zip(held, found, strict=True):
                yield Answered(reply(loaded, verdict, top_k=shown, image=image) | said, purified)
