"""How well the purifier of a bundle removes noise from pictures that it has not seen; prints JSON last.

The pictures are those of a folder that `metastable train natural` holds out, for equal --held-out and --seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metastable import bundle, console
from metastable.bundle import shipped
from metastable.console import add_out
from metastable.errors import BundleError
from metastable.evaluation.cli import machine
from metastable.networks.unshuffled import UnshuffledUNet
from metastable.training import natural, patches
from metastable.training.natural import NaturalConfig


def add(commands: Any) -> None:
    """Add the command."""
    one = commands.add_parser("denoising", help="PSNR of a purifier of photographs", description=__doc__)
    one.add_argument("--bundle", default="natural", help="folder of the bundle, or a shipped one's name")
    one.add_argument("--pictures", type=Path, required=True, help="folder of pictures")
    one.add_argument("--held-out", type=float, default=NaturalConfig.held_out, help="share of pictures")
    one.add_argument("--seed", type=console.seed, default=NaturalConfig.seed, help="of the pictures held out")
    add_out(one)
    one.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; BundleError for a bundle whose score network is of another kind."""
    folder = shipped.found(args.bundle)
    loaded = bundle.load(folder) if bundle.classifies(folder) else bundle.load_purifier(folder)
    network = loaded.networks.get("score")
    if not isinstance(network, UnshuffledUNet):
        raise BundleError(
            f"{args.bundle} has no score network for photographs: name a bundle such as natural"
        )
    pictures = patches.read(args.pictures, NaturalConfig.patch)
    _, held = patches.split(pictures, args.held_out, args.seed)
    found = natural.judge(network, held)
    for kind, values in found["psnr"].items():
        print(f"{kind:<8}", "  ".join(f"sigma {sigma}: {value:.2f} dB" for sigma, value in values.items()))
    return {
        "command": "denoising",
        "bundle": {"name": loaded.name, "digest": loaded.digest},
        **found,
        "held_out": [picture.name for picture in held],
        "pictures": len(pictures),
        "pictures_sha256": patches.digest(pictures),
        "machine": machine(),
    }
