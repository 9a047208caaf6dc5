"""Train networks: each in a run folder, which the same command resumes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from metastable import console, datasets
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
from metastable.training.run import Paused, sitting

TRAINERS: dict[str, tuple[type, Any, str]] = {
    "classifier": (classifier.ClassifierConfig, classifier.train, "a classifier, natural or adversarial"),
    "score": (score.ScoreConfig, score.train_score, "the score network of ADP"),
    "energy-dsm": (
        score.EnergyDsmConfig,
        score.train_energy,
        "the energy network by denoising score matching",
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
        one.add_argument("--out", type=Path, required=True, help="run folder; resumed if it holds a run")
        one.add_argument(
            "--device", default="auto", help="auto, cpu or cuda; auto takes CUDA where there is one"
        )
        one.add_argument("--minutes", type=float, help="pause after so long; the same command goes on")
        add_fields(one, config)
        one.set_defaults(run=run, trainer=name, resumes="out")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train until the end, or until --minutes are over."""
    config_type, train, _ = TRAINERS[args.trainer]
    config = config_type(**{f.name: getattr(args, f.name) for f in dataclasses.fields(config_type)})
    try:
        with sitting(args.minutes):
            data = Path(own) if (own := getattr(args, "pictures", "")) else datasets.data_root(args.data)
            result: dict[str, Any] = train(config, data, args.out, args.device)
    except Paused as pause:
        return {"paused": str(pause)}
    return result


def main() -> None:
    console.main(fill, "python -m metastable.training")


if __name__ == "__main__":
    main()
