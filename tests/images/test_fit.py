"""metastable.images.fit: the geometry of classifiers' preprocessing, beside what Pillow makes of it."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from metastable.errors import TooLarge
from metastable.images import INTERPOLATIONS, STRETCH, Fit, decode

SIZES = [(24, 24), (20, 36), (36, 20)]
PICTURES = [(50, 75), (75, 50), (30, 31), (11, 90), (24, 24), (97, 97)]


def picture(height: int, width: int, *, gray: bool = False) -> Image.Image:
    """Edges, slopes and noise."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    planes = [(x * 5 + y * k) % 256 * ((x // 7 + y // 5) % 2) for k in (1, 3, 8)]
    pixels = (np.stack(planes, -1) + rng.integers(0, 40, (height, width, 3))).clip(0, 255).astype(np.uint8)
    made = Image.fromarray(pixels)
    return made.convert("L") if gray else made


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def reference(image: Image.Image, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Pillow's resize and crop, with the numbers of torchvision's Resize and CenterCrop: uint8."""
    if size == (image.height, image.width):
        return np.asarray(image)
    tall, wide = (round(side / fit.share) for side in size)
    if fit.mode == "crop":
        ratio = max(tall / image.height, wide / image.width)
        binds = tall / image.height == ratio
        tall, wide = (
            (tall, int(image.width * ratio + 1e-9)) if binds else (int(image.height * ratio + 1e-9), wide)
        )
    top, left = round((tall - size[0]) / 2.0), round((wide - size[1]) / 2.0)
    whole = image.resize((wide, tall), INTERPOLATIONS[fit.interpolation])
    return np.asarray(whole.crop((left, top, left + size[1], top + size[0])))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", ["stretch", "crop"])
@pytest.mark.parametrize("share", [1.0, 0.875, 0.7])
def test_a_png_is_fitted_as_pillow_does_it(interpolation: str, mode: str, share: float) -> None:
    fit = Fit(mode, share, interpolation)
    for size in SIZES:
        for height, width in PICTURES:
            image = picture(height, width)
            made = decode(png(image), size=size, fit=fit).pixels.permute(1, 2, 0).numpy()
            difference = np.abs(255 * made - reference(image, size, fit))
            if fit == STRETCH:  # works in floats, and averages blocks before it shrinks by more than 3
                assert difference.mean() < 1
            else:
                assert difference.max() < 1e-4, (size, height, width)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_floats_are_fitted_as_8_bits_are(interpolation: str) -> None:
    image = picture(60, 90, gray=True).resize((180, 120), Image.Resampling.BICUBIC)
    fit = Fit("crop", 0.9, interpolation)
    data = io.BytesIO()
    np.save(data, np.asarray(image, np.float32) / np.float32(255))
    floats = decode(data.getvalue(), size=(40, 40), channels=1, fit=fit).pixels[0].numpy()
    # Eight bits are rounded, and cut where a filter overshoots, between the two passes and after them.
    difference = np.abs(255 * floats - reference(image, (40, 40), fit))
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.95) <= 1.01


def test_a_crop_keeps_the_aspect_ratio() -> None:
    y, x = np.mgrid[:60, :120]
    disc = Image.fromarray((255 * ((x - 60) ** 2 + (y - 30) ** 2 < 400)).astype(np.uint8))
    made = decode(png(disc), size=(48, 64), channels=1, fit=Fit("crop", 1.0, "bilinear"))
    rows, columns = (made.pixels[0] > 0.5).any(1).sum(), (made.pixels[0] > 0.5).any(0).sum()
    assert abs(int(rows) - int(columns)) <= 1
    assert made.resized
    assert made.notes == ("cropped to the middle",)
    assert made.original_size == (120, 60)
    stretched = decode(png(disc), size=(48, 64), channels=1)
    assert stretched.notes == ()
    assert stretched.resized
    rows, columns = (stretched.pixels[0] > 0.5).any(1).sum(), (stretched.pixels[0] > 0.5).any(0).sum()
    assert int(rows) > int(columns) + 5


def test_resized_sides() -> None:
    crop = Fit("crop", 224 / 256, "bilinear")
    assert crop.resized((500, 375), (224, 224)) == (341, 256)  # int(256 * 500 / 375)
    assert crop.resized((375, 500), (224, 224)) == (256, 341)
    assert Fit("crop", 224 / 232).resized((232, 400), (224, 224)) == (232, 400)
    assert Fit("crop").resized((100, 100), (48, 64)) == (64, 64)  # covers both sides
    assert Fit("crop").resized((30, 400), (48, 64)) == (48, 640)
    assert Fit("stretch", 0.875).resized((500, 375), (224, 112)) == (256, 128)
    assert not STRETCH.cuts((3, 4), (5, 6))
    assert crop.cuts((224, 225), (224, 224))
    assert not crop.cuts((224, 224), (224, 224))  # exact pixels of who knows the size


def test_a_picture_that_fits_stays_as_it_is() -> None:
    image = picture(20, 36)
    made = decode(png(image), size=(20, 36), fit=Fit("crop", 0.875, "lanczos"))
    assert not made.resized
    assert made.notes == ()
    assert np.array_equal(255 * made.pixels.permute(1, 2, 0).numpy(), np.asarray(image, np.float32))


def test_without_a_size_a_fit_does_nothing() -> None:
    made = decode(png(picture(7, 9)), size=None, fit=Fit("crop", 0.5))
    assert made.pixels.shape == (3, 7, 9)
    assert not made.resized
    assert made.notes == ()


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("mode", ["stretch", "crop"])
def test_an_extreme_picture_costs_little(upright: bool, mode: str) -> None:
    # In a process of its own: the memory of Pillow shows in the peak of the process alone.
    shape = (65_535, 122) if upright else (122, 65_535)
    script = f"""
import io, resource
import numpy as np
from metastable.images import INTERPOLATIONS, Fit, ImageLimits, decode
levels = np.zeros({shape}, np.uint8)
levels[32_500:33_036, :] = 255
levels[:, 32_500:33_036] = 255
data, limits = io.BytesIO(), ImageLimits(max_bytes=9_000_000)
np.save(data, levels)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for interpolation in INTERPOLATIONS:
    fit = Fit({mode!r}, 0.875, interpolation)
    made = decode(data.getvalue(), size=(224, 200), channels=1, fit=fit, limits=limits).pixels
    assert made.shape == (1, 224, 200) and (made.mean() > 0.9) == ({mode!r} == "crop"), (fit, made.mean())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 150_000_000


def test_the_middle_of_a_long_picture_is_what_a_moderate_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(9, 3000)
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        fit = Fit("crop", 0.875, interpolation)
        whole = decode(png(image), size=24, fit=fit).pixels
        with monkeypatch.context() as patch:
            patch.setattr("metastable.images.fit._WHOLE", 0)
            part = decode(png(image), size=24, fit=fit).pixels
        assert (255 * (whole - part)).abs().max() <= 1.001


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "pad"},
        {"interpolation": "box"},
        {"share": 0.0},
        {"share": 1.01},
        {"share": float("nan")},
    ],
    ids=str,
)
def test_what_is_no_fit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"a fit's .*{next(iter(wrong))}"):
        Fit(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1), (1, 8_000_000)])
def test_a_side_has_a_limit_of_its_own(size: tuple[int, int]) -> None:
    """Thirty kilobytes of PNG, and seconds of work for whoever waits behind it."""
    data = io.BytesIO()
    Image.new("L", size).save(data, "PNG")
    with pytest.raises(TooLarge, match="above 65535 pixels on a side"):
        decode(data.getvalue(), size=(224, 224))
