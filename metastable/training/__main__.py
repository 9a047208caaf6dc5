"""Command line of the trainers: `python -m metastable.training classifier --data D --out RUN`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from metastable import datasets
from metastable.errors import MetastableError
from metastable.training import (
    classifier,
    energy,
    energy_device,
    harden,
    harden_config,
    malade,
    purified,
    score,
)
from metastable.training.energy_update import DeviceConfig
from metastable.training.run import Paused, sitting

TRAINERS: dict[str, tuple[type, Any]] = {
    "classifier": (classifier.ClassifierConfig, classifier.train),
    "score": (score.ScoreConfig, score.train_score),
    "energy-dsm": (score.EnergyDsmConfig, score.train_energy),
    "energy-ml": (energy.EnergyMlConfig, energy.train_energy_ml),
    "energy-device": (DeviceConfig, energy_device.train),
    "malade": (malade.MaladeConfig, malade.train),
    "harden": (harden_config.HardenConfig, harden.train),
    "purified": (purified.PurifiedConfig, purified.train),
}


def add_fields(parser: argparse.ArgumentParser, config: type, defaults: object = None) -> None:
    """A flag for every field of a configuration; its default is that of the class, or of the instance."""
    for field in dataclasses.fields(config):
        flag = "--" + field.name.replace("_", "-")
        default = field.default if defaults is None else getattr(defaults, field.name)
        if isinstance(default, bool):
            parser.add_argument(flag, default=default, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(flag, type=type(default), default=default)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m metastable.training", description=__doc__)
    commands = parser.add_subparsers(dest="trainer", required=True)
    for name, (config, train) in TRAINERS.items():
        doc = (__import__(train.__module__, fromlist=["x"]).__doc__ or "").strip()
        sub = commands.add_parser(
            name, help=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
        sub.add_argument("--out", type=Path, required=True, help="run folder; resumed if it holds a run")
        sub.add_argument("--device", default="auto")
        sub.add_argument("--minutes", type=float, help="pause after so long; the same command goes on")
        add_fields(sub, config)
    args = vars(parser.parse_args())
    config_type, train = TRAINERS[args["trainer"]]
    config = config_type(**{f.name: args[f.name] for f in dataclasses.fields(config_type)})
    try:
        with sitting(args["minutes"]):
            result = train(config, datasets.data_root(args["data"]), args["out"], args["device"])
    except Paused as pause:
        result = {"paused": str(pause)}
    except MetastableError as error:
        parser.exit(2, f"{error}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
