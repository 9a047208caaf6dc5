"""Train networks: each in a run folder, which the same command resumes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from metastable import bundle, console, datasets
from metastable.bundle import shipped
from metastable.datasets import options
from metastable.errors import DataError
from metastable.images import STRETCH
from metastable.training import (
    classifier,
    energy,
    energy_device,
    harden,
    harden_config,
    malade,
    natural,
    purified,
    score,
)
from metastable.training.energy_update import DeviceConfig
from metastable.training.fields import add_fields
from metastable.training.run import DATA, Paused, sitting

TRAINERS: dict[str, tuple[type, Any, str]] = {
    "classifier": (classifier.ClassifierConfig, classifier.train, "a classifier, natural or adversarial"),
    "score": (score.ScoreConfig, score.train_score, "the score network of ADP"),
    "energy-dsm": (
        score.EnergyDsmConfig,
        score.train_energy,
        "the energy network by denoising score matching",
    ),
    "energy-denoising": (
        score.DenoisingEnergyConfig,
        score.train_denoising_energy,
        "an energy that denoises by construction, by score matching at one noise level",
    ),
    "energy-ml": (energy.EnergyMlConfig, energy.train_energy_ml, "the energy network by maximum likelihood"),
    "energy-device": (DeviceConfig, energy_device.train, "the same, everything on one device"),
    "malade": (malade.MaladeConfig, malade.train, "MALADE's supervised denoising autoencoder"),
    "harden": (harden_config.HardenConfig, harden.train, "purifier and classifier through each other"),
    "natural": (natural.NaturalConfig, natural.train, "the purifier of photographs of any size"),
    "purified": (purified.PurifiedConfig, purified.train, "a classifier on purified attacks"),
}


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of the trainers."""
    parser.description = __doc__
    commands = parser.add_subparsers(metavar="TRAINER", required=True)
    for name, (config, train, summary) in TRAINERS.items():
        one = commands.add_parser(name, help=summary, description=sys.modules[train.__module__].__doc__)
        one.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
        if not _cuts_patches(config):
            _add_folder(one)
        one.add_argument("--out", type=Path, required=True, help="run folder; resumed if it holds a run")
        one.add_argument(
            "--device", default="auto", help="auto, cpu or cuda; auto takes CUDA where there is one"
        )
        one.add_argument("--minutes", type=float, help="pause after so long; the same command goes on")
        add_fields(one, config)
        console.idle(one, "--data", beside="--pictures", why="which names the folder")
        one.set_defaults(run=run, trainer=name, resumes="out")


def _add_folder(one: argparse.ArgumentParser) -> None:
    options.add(one, "--dataset", "--data")
    one.add_argument(
        "--shape",
        type=_shape,
        help="of what --images become, such as 3x224x224 (default: the bundle's, else as the data set's)",
    )
    one.add_argument(
        "--mirrored",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether --images may be mirrored: not where they show text or digits",
    )
    console.idle(
        one, "--shape", "--mirrored", "--no-mirrored", without="--images", why="the folder of the pictures"
    )


def _cuts_patches(config: type) -> bool:
    """Whether a trainer reads pictures of any size itself, and has an option of its own for their folder."""
    return "pictures" in {f.name for f in dataclasses.fields(config)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train until the end, or until --minutes are over."""
    config_type, train, _ = TRAINERS[args.trainer]
    config = config_type(**{f.name: getattr(args, f.name) for f in dataclasses.fields(config_type)})
    source: datasets.Source
    if _cuts_patches(config_type) and args.pictures:
        source = Path(args.pictures)
    elif not _cuts_patches(config_type) and options.given(args):
        source = _pictures(args, config)
        config = dataclasses.replace(config, dataset=source.inputs)
    else:
        source = datasets.data_root(args.data)
    try:
        with sitting(args.minutes):
            result: dict[str, Any] = train(config, source, args.out, args.device)
    except Paused as pause:
        return {"paused": str(pause)}
    finally:
        if isinstance(source, datasets.Folder):
            _tell(source, args, config)
    return result


def _tell(source: datasets.Folder, args: argparse.Namespace, config: Any) -> None:
    """Write how pictures became images beside the configuration of the run, if the folder holds this run."""
    kept = args.out / "config.json"
    if kept.exists() and json.loads(kept.read_text())["dataset"] == config.dataset:
        said = source.about() | {"classes": source.classes, "mirrored": source.mirrored}
        said |= getattr(args, "adds", {}).get("pictures", {})
        (args.out / DATA).write_text(json.dumps(said, indent=2) + "\n")


def _pictures(args: argparse.Namespace, config: Any) -> datasets.Folder:
    """The folder of --images; shape and classes are those of the configuration's bundle, if it has one."""
    shape, fit, names = args.shape or datasets.named(args.dataset).shape, STRETCH, tuple[str, ...]()
    if hasattr(config, "bundle"):
        loaded = bundle.load(shipped.path(config.bundle))
        if args.shape not in (None, loaded.shape):
            raise DataError(f"{config.bundle} is for images of {loaded.shape}: leave out --shape")
        shape, fit, names = loaded.shape, loaded.fit, tuple(loaded.classes)
    return options.folder(args, shape, fit, names, mirrored=args.mirrored)


def _shape(text: str) -> datasets.Shape:
    """Channels x height x width; ArgumentTypeError for anything else."""
    parts = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    channels, height, width = parts if len(parts) == 3 else (0, 0, 0)
    if channels not in (1, 3) or not 1 <= min(height, width) <= max(height, width) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 3x224x224")
    return channels, height, width


def main() -> None:
    console.main(fill, "python -m metastable.training")


if __name__ == "__main__":
    main()
