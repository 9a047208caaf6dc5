"""Write the purified images of an answer, the mean over its chains, and the verdicts beside them.

    metastable purify samples/cat.png --out runs/purified

writes runs/purified/cat.png and runs/purified/verdicts.json.  A server hands no purified image
out, so this runs in this process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from metastable.cli import client, local


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this command."""
    parser.description = __doc__
    parser.add_argument("images", nargs="+", type=Path, help="PNG, JPEG, WebP or .npy files")
    parser.add_argument(
        "--bundle", type=Path, default=Path("model_store/cifar10"), help="folder of the bundle"
    )
    parser.add_argument("--setting", help="of the bundle (default: its default)")
    parser.add_argument("--top-k", type=int, default=3, help="classes that are listed")
    parser.add_argument("--out", type=Path, default=Path("purified"), help="folder to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Answer, and write."""
    if args.top_k < 1:
        raise ValueError("--top-k must be 1 or more")
    names = [f"{path.stem}.png" for path in args.images]
    if len(set(names)) < len(names):
        raise ValueError("two images have the same name: purify them into different folders")
    for path, name in zip(args.images, names, strict=True):
        if path.resolve() == (args.out / name).resolve():
            raise ValueError(f"{path} would be written over: choose another --out")
    loaded = local.load(args.bundle, args.setting)
    answered = local.answer(loaded, local.read(args.images, loaded.shape), args.top_k)
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for path, name, one in zip(args.images, names, answered, strict=True):
        picture(one.purified).save(args.out / name)
        found.append({"image": str(path), "purified": str(args.out / name), "verdict": one.verdict})
        print(client.line(path, one.verdict))
    (args.out / "verdicts.json").write_text(json.dumps(found, indent=2) + "\n")
    return {"command": "purify", "images": found}


def picture(image: Tensor) -> Image.Image:
    """An image [1 or 3, H, W] in 8 bits; values outside [0, 1], which chains may reach, are cut."""
    pixels = (255 * image.clamp(0, 1)).round().to(torch.uint8).movedim(0, -1)
    return Image.fromarray(pixels.squeeze(-1).numpy())
