"""Benign changes: what happens to honest images on their way to a server, by Pillow.

Re-encoding, blur, light and colour, small geometry, and weak noise.  None of them changes what an
image shows, so a flag that many of them raise refuses honest users.  The changes work on uint8 images, as
files hold them; corruptions that are meant to be hard are in `metastable.corruptions`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from metastable.errors import DataError

Apply = Callable[[Image.Image, np.random.Generator], Image.Image]
"""(image, its random numbers) -> the changed image, of the same size and mode; the image stays as it is."""
_SMOOTH = Image.Resampling.BILINEAR


class Change(NamedTuple):
    """A change in words, and the change."""

    says: str
    apply: Apply


def _coded(image: Image.Image, rng: np.random.Generator, *, format: str, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, format, quality=quality)
    return Image.open(stream).convert(image.mode)


def _enhanced(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    by: Callable[[Image.Image], ImageEnhance._Enhance],
    to: float,
) -> Image.Image:
    return by(image).enhance(to)


def _filtered(image: Image.Image, rng: np.random.Generator, *, kind: ImageFilter.Filter) -> Image.Image:
    return image.filter(kind)


def _palette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.quantize(256).convert(image.mode)


def _resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    return image.resize((3 * width // 4, 3 * height // 4), _SMOOTH).resize(image.size, _SMOOTH)


def _zoomed(image: Image.Image, rng: np.random.Generator, *, pixels: int) -> Image.Image:
    width, height = image.size
    inner = image.crop((pixels, pixels, width - pixels, height - pixels))
    return inner.resize(image.size, Image.Resampling.BICUBIC)


def _rotated(image: Image.Image, rng: np.random.Generator, *, degrees: float) -> Image.Image:
    return image.rotate(degrees, _SMOOTH)


def _gamma(image: Image.Image, rng: np.random.Generator, *, power: float) -> Image.Image:
    curve = [round(255 * (value / 255) ** power) for value in range(256)]
    return image.point(curve * len(image.getbands()))


def _noisy(image: Image.Image, rng: np.random.Generator, *, width: int) -> Image.Image:
    pixels = np.asarray(image)
    noisy = np.rint(pixels + rng.uniform(-width, width, pixels.shape))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _jpeg(quality: int) -> Change:
    return Change(f"JPEG, quality {quality}", partial(_coded, format="JPEG", quality=quality))


_Brightness, _Contrast, _Colour = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
CHANGES: dict[str, Change] = {
    "clean": Change("unchanged", lambda image, rng: image.copy()),
    "jpeg90": _jpeg(90),
    "jpeg75": _jpeg(75),
    "jpeg50": _jpeg(50),
    "webp80": Change("WebP, quality 80", partial(_coded, format="WEBP", quality=80)),
    "blur": Change("Gaussian blur, radius 1", partial(_filtered, kind=ImageFilter.GaussianBlur(1))),
    "sharpened": Change("sharpened (Pillow's SHARPEN)", partial(_filtered, kind=ImageFilter.SHARPEN())),
    "brighter": Change("brightness +20 %", partial(_enhanced, by=_Brightness, to=1.2)),
    "darker": Change("brightness -20 %", partial(_enhanced, by=_Brightness, to=0.8)),
    "more-contrast": Change("contrast +20 %", partial(_enhanced, by=_Contrast, to=1.2)),
    "less-contrast": Change("contrast -20 %", partial(_enhanced, by=_Contrast, to=0.8)),
    "more-saturation": Change("saturation +20 %", partial(_enhanced, by=_Colour, to=1.2)),
    "less-saturation": Change("saturation -20 %", partial(_enhanced, by=_Colour, to=0.8)),
    "gamma0.8": Change("gamma 0.8", partial(_gamma, power=0.8)),
    "gamma1.25": Change("gamma 1.25", partial(_gamma, power=1.25)),
    "palette256": Change("palette of 256 colours", _palette),
    "resized": Change("down to 3/4 (32 to 24 pixels) and up again", _resized),
    "zoom1": Change("a border of 1 pixel cut off, enlarged", partial(_zoomed, pixels=1)),
    "zoom2": Change("a border of 2 pixels cut off, enlarged", partial(_zoomed, pixels=2)),
    "rotated": Change("rotated by 5 degrees, corners black", partial(_rotated, degrees=5)),
    "noise2": Change("uniform noise of 2/255", partial(_noisy, width=2)),
    "noise4": Change("uniform noise of 4/255", partial(_noisy, width=4)),
}
"""The changes by name; saturation and the palette leave greyscale images as they are."""
DEFAULT = tuple(name for name in CHANGES if name not in ("clean", "noise2", "noise4"))
"""What calibration includes unless told otherwise: no noise, which is what weak attacks look like."""


def named(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once, in their order; DataError, which lists all, for others."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := sorted(set(names) - set(CHANGES)):
        raise DataError(f"there are no benign changes {unknown}: choose from {', '.join(CHANGES)}")
    return names


def changed(images: Tensor, name: str, seed: int = 0) -> Tensor:
    """Images uint8 [N, C, H, W] under the named change: a new tensor of the same shape and type.

    C is 1 or 3.  Equal calls give equal images; image i draws from (seed, i).

    Raises DataError for a name that is not in CHANGES, and ValueError for images of another type or shape.
    """
    return _each(images, [*named(name)] * len(images), seed)


def mixed(
    images: Tensor, names: Sequence[str], *, clean_share: float = 0.5, seed: int = 0
) -> tuple[Tensor, dict[str, int]]:
    """Images of which each has one of the changes, drawn evenly, or none with chance `clean_share`.

    Returns the images, as `changed` does, and how many had each change, in the order of CHANGES.

    Raises DataError for names that are not in CHANGES or are none, or a share outside [0, 1).
    """
    kinds = [name for name in named(",".join(names)) if name != "clean"]
    if not kinds or not 0 <= clean_share < 1:
        raise DataError("a mixture needs a benign change besides clean, and a clean share from 0 to below 1")
    rng = np.random.default_rng([seed, len(images)])
    stays, which = rng.random(len(images)) < clean_share, rng.integers(len(kinds), size=len(images))
    drawn = ["clean" if stay else kinds[at] for stay, at in zip(stays, which, strict=True)]
    counts = {name: drawn.count(name) for name in CHANGES if name in drawn}
    return _each(images, drawn, seed), counts


def _each(images: Tensor, names: Sequence[str], seed: int) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8 [N, 1 or 3, H, W], not {images.dtype} {tuple(images.shape)}")
    made = torch.empty_like(images)
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        picture = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
        after = np.array(CHANGES[name].apply(picture, np.random.default_rng([seed, index])))
        found = torch.from_numpy(after)
        made[index] = found[None] if found.ndim == 2 else found.permute(2, 0, 1)
    return made
