"""Write the purified images of an answer, the mean over its chains, and the verdicts beside them.

    metastable purify samples/cat.png --out runs/purified

writes runs/purified/cat.png and runs/purified/verdicts.json.  A server hands no purified image
out, so this runs in this process.  A bundle without a classifier, such as `natural`, purifies images at
their own size and says nothing else of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from metastable import bundle, noise
from metastable.bundle import Purifier, shipped
from metastable.cli import local, telling
from metastable.defense import purify, score_of
from metastable.images import ImageLimits
from metastable.settings import Setting

LIMITS = ImageLimits(max_bytes=100_000_000)
"""Of images that keep their size: those of whoever runs this, not of clients."""


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument("images", nargs="+", type=Path, help="PNG, JPEG, WebP or .npy files")
    parser.add_argument(
        "--bundle", default="model_store/cifar10", help="folder of the bundle, or a shipped one's name"
    )
    parser.add_argument("--setting", help="of the bundle (default: its default)")
    parser.add_argument("--top-k", type=int, default=3, help="classes that are listed")
    parser.add_argument("--out", type=Path, default=Path("purified"), help="folder to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Answer, and write."""
    if args.top_k < 1:
        raise ValueError("--top-k must be 1 or more")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file: name a folder")
    names = [f"{path.stem}.png" for path in args.images]
    if len(set(names)) < len(names):
        raise ValueError("two images have the same name: purify them into different folders")
    for path, name in zip(args.images, names, strict=True):
        if path.resolve() == (args.out / name).resolve():
            raise ValueError(f"{path} would be written over: choose another --out")
    folder = shipped.found(args.bundle)
    if not bundle.classifies(folder):
        return _only(args, bundle.load_purifier(folder), names)
    loaded = local.load(folder, args.setting)
    answered = local.answer(loaded, local.read(args.images, loaded), args.top_k)
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for path, name, one in zip(args.images, names, answered, strict=True):
        picture(one.purified).save(args.out / name)
        found.append({"image": str(path), "purified": str(args.out / name), "verdict": one.verdict})
        print(telling.line(path, one.verdict))
    (args.out / "verdicts.json").write_text(json.dumps(found, indent=2) + "\n")
    return {"command": "purify", "images": found}


def _only(args: argparse.Namespace, loaded: Purifier, names: list[str]) -> dict[str, Any]:
    """Purify at the images' own sizes, without verdicts."""
    setting = local.setting_of(loaded.settings, args.setting)
    images = [_sized(path, loaded.channels) for path in args.images]  # all, before anything is written
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for path, name, image in zip(args.images, names, images, strict=True):
        made = mean(image, loaded, setting)
        moved = float((made - image).square().mean().sqrt())
        picture(made).save(args.out / name)
        found.append({"image": str(path), "purified": str(args.out / name), "moved": round(moved, 6)})
        print(f"{path}: {image.shape[2]} x {image.shape[1]} pixels, moved by {moved:.4f} (root mean square)")
    return {"command": "purify", "bundle": loaded.name, "setting": setting.name, "images": found}


def _sized(path: Path, channels: int) -> Tensor:
    """The image in a file at its own size."""
    return _gray(local.decoded(path, size=None, channels=channels, limits=LIMITS).pixels)


@torch.inference_mode()
def mean(image: Tensor, loaded: Purifier, setting: Setting) -> Tensor:
    """The mean [C, H, W] of a setting's chains from an image, made one at a time: images may be large."""
    seed, score = noise.secret_seed(), score_of(loaded.scores, setting)
    total, flagged = torch.zeros_like(image), torch.tensor([True])
    for chain in range(setting.most_chains):
        total += purify(image[None], [(seed, chain)], setting, score, flagged)[0][0]
    return total / setting.most_chains


def _gray(image: Tensor) -> Tensor:
    """One channel where all are equal: gray images get the same noise in every channel, and stay gray."""
    return image[:1] if bool((image == image[:1]).all()) else image


def picture(image: Tensor) -> Image.Image:
    """An image [1 or 3, H, W] in 8 bits; values outside [0, 1], which chains may reach, are cut."""
    pixels = (255 * image.clamp(0, 1)).round().to(torch.uint8).movedim(0, -1)
    return Image.fromarray(pixels.squeeze(-1).numpy())
