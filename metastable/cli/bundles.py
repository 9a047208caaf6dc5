"""What a bundle holds, and whether it is whole."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch

from metastable import bundle, console, noise
from metastable.anomaly import score_norms
from metastable.bundle import Bundle, Purifier, shipped
from metastable.cli.purify import mean
from metastable.defense import defend
from metastable.errors import BundleError
from metastable.images import STRETCH


def fill_info(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of `bundle info`."""
    _folder(parser)
    parser.set_defaults(run=info)


def fill_check(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of `bundle check`."""
    parser.description = (
        "Load every part of a bundle, compare the digests, and answer one image with every setting."
    )
    _folder(parser)
    parser.set_defaults(run=check)


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        nargs="?",
        type=_named,
        default="model_store/cifar10",
        help="folder of the bundle, or a shipped one's name (default: %(default)s)",
    )
    console.add_out(parser)


def _named(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty name: give a folder, such as model_store/cifar10")
    return text


def info(args: argparse.Namespace) -> dict[str, Any]:
    """Its name, parts, classes, settings, calibration and origin."""
    folder = shipped.found(args.bundle)
    loaded = bundle.load(folder) if bundle.classifies(folder) else bundle.load_purifier(folder)
    whole = loaded if isinstance(loaded, Bundle) else None  # else it only purifies
    parts = loaded.networks if whole is None else {"classifier": whole.classifier, **whole.networks}
    shape = [loaded.channels] if isinstance(loaded, Purifier) else list(loaded.shape)
    classes = [] if whole is None else whole.classes
    anomaly = None if whole is None else whole.anomaly
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    found: dict[str, Any] = {
        "command": "bundle info",
        "name": loaded.name,
        "version": loaded.version,
        "digest": loaded.digest,
        "shape": shape,
        "fit": dataclasses.asdict(whole.fit) if whole else None,
        "classes": classes,
        "parts": {
            name: {"kind": type(part).__name__, "parameters": sizes[name], "sha256": loaded.parts[name]}
            for name, part in parts.items()
        },
        "settings": {name: one.dynamics.name for name, one in loaded.settings.by_name.items()},
        "default_setting": loaded.settings.default,
        "anomaly": dataclasses.asdict(anomaly) if anomaly else None,
        "provenance": dataclasses.asdict(loaded.provenance),
    }
    if whole is None:
        print(f"{loaded.name} {loaded.version}: no classifier, images of {shape[0]} channels and any size")
    else:
        print(f"{loaded.name} {loaded.version}: {len(classes)} classes, images {whole.shape}")
        if whole.fit != STRETCH:
            print(f"  pictures {whole.fit.mode}, share {whole.fit.share:.4g}, {whole.fit.interpolation}")
    for name, part in parts.items():
        print(f"  part     {name:<12} {type(part).__name__}, {sizes[name]} parameters")
    for name, one in loaded.settings.by_name.items():
        default = ", the default" if name == loaded.settings.default else ""
        print(f"  setting  {name:<12} {one.dynamics.name}, {one.chains} chains, {one.steps} steps{default}")
    if whole is not None and anomaly is None:
        print("  no anomaly calibration: it cannot be served before `metastable calibrate`")
    return found


def check(args: argparse.Namespace) -> dict[str, Any]:
    """Raises BundleError or SettingsError with what is wrong; a bundle that cannot be served is wrong too."""
    folder = shipped.found(args.bundle)
    if not bundle.classifies(folder):
        return _check_purifier(bundle.load_purifier(folder), args.bundle)
    loaded = bundle.load(folder)  # digests, types and ranges are checked there
    calibration = loaded.calibration
    image = torch.rand(1, *loaded.shape, generator=torch.Generator().manual_seed(0))
    flagged = calibration.flags(score_norms(image, loaded.scores[calibration.network]))
    for name, setting in loaded.settings.by_name.items():
        one = dataclasses.replace(setting, chains=1)
        made = defend(
            image,
            [noise.secret_seed()],
            one,
            classifier=loaded.classifier,
            scores=loaded.scores,
            flagged=flagged,
        )
        if not made.outputs.isfinite().all():
            raise BundleError(f"setting {name} of {args.bundle} gives numbers that are not finite")
        print(f"setting {name}: answers")
    return {"command": "bundle check", "bundle": str(args.bundle), "digest": loaded.digest, "whole": True}


def _check_purifier(loaded: Purifier, given: str) -> dict[str, Any]:
    """As `check`, of a bundle without a classifier."""
    image = torch.rand(loaded.channels, 21, 34, generator=torch.Generator().manual_seed(0))
    for name, setting in loaded.settings.by_name.items():
        if not mean(image, loaded, dataclasses.replace(setting, chains=1)).isfinite().all():
            raise BundleError(f"setting {name} of {given} gives numbers that are not finite")
        print(f"setting {name}: purifies")
    return {"command": "bundle check", "bundle": given, "digest": loaded.digest, "whole": True}
