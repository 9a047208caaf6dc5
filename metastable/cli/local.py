"""Verdicts in this process, for the commands that need no server."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metastable import bundle, noise
from metastable.bundle import Bundle
from metastable.engine.inspection import Inspector
from metastable.engine.local import LocalEngine
from metastable.engine.reply import reply
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.engine.verdict import verdict_of
from metastable.errors import BundleError, RequestError, SettingsError
from metastable.images import DEFAULT_LIMITS, DecodedImage, Limits, decode
from metastable.settings import Setting, Settings

RUNNER = "torch"


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
    if loaded.anomaly is None:
        raise BundleError(f"the bundle {folder} has no anomaly threshold: run `metastable calibrate` first")
    chosen = setting_of(loaded.settings, setting)
    only = dataclasses.replace(loaded.settings, by_name={chosen.name: chosen}, default=chosen.name)
    return dataclasses.replace(loaded, settings=only)


def setting_of(settings: Settings, name: str | None) -> Setting:
    """The setting of this name, the default for None; SettingsError if there is none."""
    name = name or settings.default
    if name not in settings.names:
        raise SettingsError(f"there is no setting {name!r}: choose from {', '.join(settings.names)}")
    return settings[name]


def read(paths: Sequence[Path], shape: tuple[int, int, int]) -> list[DecodedImage]:
    """Image files as a bundle's images of `shape` (C, H, W).

    Raises the RequestError that a server would answer, with the file's name, and OSError.
    """
    return [decoded(path, size=shape[1], channels=shape[0]) for path in paths]


def decoded(path: Path, *, size: int | None, channels: int, limits: Limits = DEFAULT_LIMITS) -> DecodedImage:
    """One image file, as `read`; with None for a size it keeps its own."""
    try:
        return decode(path.read_bytes(), size=size, channels=channels, limits=limits)
    except RequestError as error:
        raise type(error)(f"{path}: {error}") from None


def answer(loaded: Bundle, images: Sequence[DecodedImage], top_k: int = 3) -> list[Answered]:
    """The verdicts of a bundle that `load` gave, with fresh noise."""
    setting = loaded.settings[loaded.settings.default]
    runner = TorchRunner(loaded.networks, loaded.classifier)
    engine, inspect = LocalEngine(runner, loaded.settings, loaded.shape), Inspector(loaded, runner)
    started = time.perf_counter()
    pixels = torch.stack([image.pixels for image in images])
    raw = inspect(pixels)
    flags = torch.tensor([one.flagged for one in raw])
    answers = engine.answer(pixels, [noise.secret_seed() for _ in images], setting, flags)
    each = round(1e3 * (time.perf_counter() - started) / len(images), 3)
    shown = min(top_k, len(loaded.classes))
    return [
        Answered(
            reply(loaded, verdict_of(loaded, one, seen), top_k=shown, image=image)
            | {"runner": RUNNER, "timings_ms": {"total": each}},
            one.result.purified[0],
        )
        for image, one, seen in zip(images, answers, raw, strict=True)
    ]
