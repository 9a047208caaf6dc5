"""What the project that a classifier comes from says of its pictures, in a file beside the model.

Two files are read: `preprocessor_config.json` of Hugging Face's image processors (ViT, DeiT, CLIP, ConvNeXt,
PoolFormer, MobileNet, MobileViT, EfficientNet and their like), and timm's `config.json` (`pretrained_cfg`).
Both are data that somebody else wrote: bounded, strict JSON, every value checked.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from metastable import reading
from metastable.bundle import checks
from metastable.bundle.manifest import SIDE
from metastable.errors import BundleError, DataError
from metastable.images import INTERPOLATIONS, LEAST_SHARE, Fit

HUGGING_FACE, TIMM = "preprocessor_config.json", "config.json"
MOST_BYTES = 2**20
_PIL = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling; 4 and 5 are refused
_SHORTER = ("Bit", "CLIP", "ChineseCLIP", "ConvNext", "Levit", "MobileNet", "MobileViT", "PoolFormer")
"""Processors for which a bare number is the shorter side; for the others it is both."""
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture before a classifier sees it.

    Attributes:
        size: (height, width) of the classifier's images.
        fit: how a picture becomes one.
        mean, std: by channel, or one number for all; it was trained on (x - mean) / std of images x in
            [0, 1].
        bgr: whether blue comes first.
        notes: short sentences on what was read, and from where.
    """

    size: tuple[int, int]
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    notes: tuple[str, ...]

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """mean and std, one number a channel; DataError where they are of another number of channels."""
        if len(self.mean) not in (1, channels):
            raise DataError(
                f"mean and std are of {len(self.mean)} channels, and the classifier takes {channels}"
            )
        repeat = channels // len(self.mean)
        return self.mean * repeat, self.std * repeat


def beside(model: Path) -> Preprocessing | None:
    """What a file beside `model` declares; None where there is none that does.

    Raises DataError for one that cannot be read or says what cannot be done.
    """
    for name, parsed in ((HUGGING_FACE, hugging_face), (TIMM, timm)):
        try:
            raw = reading.read(model.parent / name, MOST_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            why = f"has more than {MOST_BYTES} bytes" if error.errno == errno.EFBIG else error.strerror
            raise DataError(f"{name} cannot be read: {why}") from None
        if (found := parsed(raw)) is not None:
            return found
    return None


def hugging_face(raw: bytes) -> Preprocessing:
    """What a preprocessor_config.json declares; DataError where it is wrong or cannot be followed."""
    given = _Fields(HUGGING_FACE, _object(raw, HUGGING_FACE))
    kind = given.text("image_processor_type", given.text("feature_extractor_type", ""))
    if not given.flag("do_resize", True):
        given.fail("do_resize", "true: pictures of any size need one")
    if given.flag("do_pad", False):
        given.fail("do_pad", "false: pictures are not framed here")
    if given.number("resample", 2, 0, 5) not in _PIL:
        given.fail("resample", f"one of {', '.join(f'{k} ({v})' for k, v in _PIL.items())}")
    size, fit = _geometry(given, kind, _PIL[int(given.number("resample", 2, 0, 5))])
    mean, std = _normalization(given, kind)
    notes = [f"read from {HUGGING_FACE}" + (f" ({kind})" if kind else "")]
    if "resample" not in given.values:
        notes.append("it says no interpolation: bilinear")
    return _made(
        given, size, fit, mean, std, given.flag("do_flip_channel_order", kind.startswith("MobileViT")), notes
    )


def timm(raw: bytes) -> Preprocessing | None:
    """What timm's config.json declares; None for one without `pretrained_cfg`, of another library."""
    found = _object(raw, TIMM)
    if "pretrained_cfg" not in found:
        return None
    if not isinstance(found["pretrained_cfg"], dict):
        raise DataError(f"{TIMM}: pretrained_cfg must be a mapping")
    given = _Fields(TIMM, found["pretrained_cfg"])
    shape = given.values.get("input_size")
    if not isinstance(shape, list) or len(shape) != 3:
        given.fail("input_size", "[channels, height, width]")
    _, height, width = (given.whole("input_size", one, low=1) for one in shape)
    share = given.number("crop_pct", 0.875, LEAST_SHARE, 1)
    interpolation = given.text("interpolation", "bicubic")
    if interpolation not in INTERPOLATIONS:
        given.fail("interpolation", f"one of {', '.join(INTERPOLATIONS)}")
    mode = given.text("crop_mode", "center")
    if mode not in ("center", "squash"):
        given.fail("crop_mode", "center or squash: pictures are not framed here")
    # timm rounds the resized sides down.  A square is resized to one of them; other sizes are covered.
    resized = [math.floor(side / share) for side in (height, width)]
    fit = _fit(given, "crop_pct", (height, width), resized, mode == "center", interpolation)
    mean, std = (given.channels(key, usual) for key, usual in zip(("mean", "std"), _IMAGENET, strict=True))
    notes = [f"read from {TIMM} (timm)"]
    notes += [
        f"it says no {key}: timm's own" for key in ("mean", "std", "crop_pct") if key not in given.values
    ]
    if len(mean) != shape[0]:
        given.fail("mean", f"{shape[0]} numbers, one for each channel of input_size")
    return _made(given, (height, width), fit, mean, std, False, notes)


class _Fields:
    """Values of a file, each checked when it is asked for; null counts as left out."""

    def __init__(self, file: str, values: Mapping[str, Any]) -> None:
        self.file = file
        self.values = {key: value for key, value in values.items() if value is not None}

    def fail(self, key: str, wanted: str) -> NoReturn:
        raise DataError(f"{self.file}: {key} must be {wanted}")

    def flag(self, key: str, usual: bool) -> bool:
        value = self.values.get(key, usual)
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def text(self, key: str, usual: str) -> str:
        value = self.values.get(key, usual)
        if not isinstance(value, str) or len(value) > 100 or not (value.isprintable() or not value):
            self.fail(key, "printable text of at most 100 characters")
        return value

    def number(self, key: str, usual: float, low: float, high: float) -> float:
        return self.real(key, self.values.get(key, usual), low, high)

    def real(self, key: str, value: Any, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, value: Any, low: int = 1) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 10 * SIDE:
            self.fail(key, f"whole numbers from {low} to {10 * SIDE}")
        return value

    def channels(self, key: str, usual: tuple[float, ...]) -> tuple[float, ...]:
        """One number a channel; one alone is that of a gray image."""
        value = self.values.get(key, list(usual))
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) not in (1, 3):
            self.fail(key, "1 or 3 numbers, one a channel")
        return tuple(self.real(key, one, 1e-6 if "std" in key else -1e6, 1e6) for one in numbers)

    def sides(self, key: str) -> tuple[str, tuple[int, int]]:
        """Whether a size is of the `shorter` side, of `both`, or one `number`; and height and width."""
        value = self.values[key]
        if isinstance(value, dict) and set(value) == {"shortest_edge"}:
            side = self.whole(key, value["shortest_edge"])
            return "shorter", (side, side)
        if isinstance(value, dict):
            if set(value) != {"height", "width"}:
                self.fail(key, "a number, {height, width} or {shortest_edge}")
            return "both", (self.whole(key, value["height"]), self.whole(key, value["width"]))
        if isinstance(value, list) and len(value) == 2:
            return "both", (self.whole(key, value[0]), self.whole(key, value[1]))
        side = self.whole(key, value)
        return "number", (side, side)


def _geometry(given: _Fields, kind: str, interpolation: str) -> tuple[tuple[int, int], Fit]:
    if "size" not in given.values:
        given.fail("size", "there: the height and width of the classifier's images")
    how, size = given.sides("size")
    shorter = how == "shorter" or (
        how == "number" and (kind.startswith(_SHORTER) or "crop_pct" in given.values)
    )
    crops = given.flag("do_center_crop", "crop_size" in given.values)
    if "crop_pct" in given.values or kind.startswith("ConvNext"):  # the size is what is left
        share = given.number("crop_pct", 0.875, LEAST_SHARE, 1)
        if "crop_size" in given.values and crops:
            _, left = given.sides("crop_size")
        elif size[0] >= 384 and not kind.startswith("PoolFormer"):
            return size, Fit(interpolation=interpolation)  # ConvNeXt stretches to large ones
        else:
            left = size
        resized = [int(side / share) for side in size]
        return left, _fit(given, "crop_pct", left, resized, shorter, interpolation)
    if not crops:
        if shorter:
            given.fail("size", "cropped: with a shortest_edge alone every picture has a width of its own")
        return size, Fit(interpolation=interpolation)
    if "crop_size" not in given.values:
        given.fail("crop_size", "there where do_center_crop is true")
    left = given.sides("crop_size")[1]
    if kind.startswith("Levit") and shorter:
        size = int(256 / 224 * size[0]), int(256 / 224 * size[1])
    return left, _fit(given, "size", left, list(size), shorter, interpolation)


def _fit(
    given: _Fields, key: str, size: tuple[int, int], resized: list[int], keeps: bool, interpolation: str
) -> Fit:
    """The fit that resizes to these sides and takes the middle `size`; DataError where no share does."""
    if min(have - want for have, want in zip(resized, size, strict=True)) < 0:
        given.fail(key, f"at least {size[0]} x {size[1]}, which is what is cropped")
    shares = [want / have for have, want in zip(resized, size, strict=True)]
    for share in (*shares, sum(shares) / 2):
        if share >= LEAST_SHARE and [round(side / share) for side in size] == resized:
            return Fit("crop" if keeps else "stretch", share, interpolation)
    given.fail(
        key, f"in proportion: {size[0]} x {size[1]} cannot be cropped from {resized[0]} x {resized[1]}"
    )


def _normalization(given: _Fields, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """mean and std in units of [0, 1], of pixels that are scaled, moved and normalised in turn."""
    factor = given.number("rescale_factor", 1 / 255, 1e-9, 1e3) if given.flag("do_rescale", True) else 1.0
    moved = 1.0 if given.flag("rescale_offset", False) else 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if given.flag("do_normalize", True):
        for key in ("image_mean", "image_std"):
            if key not in given.values:
                given.fail(key, "there where do_normalize is not false")
        mean, std = given.channels("image_mean", ()), given.channels("image_std", ())
    if kind.startswith("EfficientNet") and given.flag("include_top", True):
        std = tuple(value * value for value in std)  # it divides by image_std once more
    if len(mean) != len(std):
        given.fail("image_std", "as many numbers as image_mean has")
    unit = 255 * factor
    mean, std = tuple((value + moved) / unit for value in mean), tuple(value / unit for value in std)
    if not (max(map(abs, mean)) <= 1e6 and 1e-6 <= min(std) <= max(std) <= 1e6):
        given.fail("image_mean and image_std", "up to 1e6, and std at least 1e-6, for images in [0, 1]")
    return mean, std


def _made(
    given: _Fields,
    size: tuple[int, int],
    fit: Fit,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    bgr: bool,
    notes: list[str],
) -> Preprocessing:
    if max(size) > SIDE:
        given.fail("size", f"at most {SIDE} x {SIDE}, the largest images of a bundle")
    if len(mean) != len(std):
        given.fail("std", f"{len(mean)} numbers, as mean has")
    cut = f", {fit.share:.4g} of it kept" if fit.share < 1 else ""
    notes.append(f"{size[0]} x {size[1]}, {fit.mode}{cut}, {fit.interpolation}")
    return Preprocessing(size, fit, mean, std, bgr, tuple(notes))


def _object(raw: bytes, file: str) -> dict[str, Any]:
    if len(raw) > MOST_BYTES:
        raise DataError(f"{file} has more than {MOST_BYTES} bytes")
    try:
        return checks.strict_json(raw, file, "save it again with the library that it is of")
    except BundleError as error:
        raise DataError(str(error)) from None
