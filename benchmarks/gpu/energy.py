"""The convergent energy in one sitting of a loan: Algorithm 2 on the device, and what its checks say.

    metastable bench gpu energy --data DIR --run DIR --minutes M --out FILE [-- flags of the trainer]

The run lies in --run, and the same command goes on with it.  A row is a check of the weights; the rows are
written as they come, and the file says that it is not finished where the run was paused.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import common
from metastable import console, datasets
from metastable.training import energy_device
from metastable.training.energy_update import DeviceConfig
from metastable.training.fields import add_fields
from metastable.training.run import Paused, sitting

TINY = {
    **{"updates": 4, "switch": 2, "warm": 2, "features": 4, "bank": 8, "batch": 4, "steps": 2},
    **{"report_every": 2, "held": 4, "check_images": 4, "check_steps": 2},
}
SHOWN = ("update", "accuracy", "drift", "spread", "strength", "pixel_min", "pixel_max")


def flags(given: list[str], bundle: Path, *, tiny: bool) -> DeviceConfig:
    """The trainer's parameters: its flags over its defaults."""
    base = dataclasses.replace(DeviceConfig(bundle=str(bundle)), **(TINY if tiny else {}))  # type: ignore[arg-type]
    parser = console.Parser(prog="flags of the trainer")
    add_fields(parser, DeviceConfig, base)
    return DeviceConfig(**vars(parser.parse_args(given)))


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of this script."""
    common.add_arguments(parser, __doc__)
    parser.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
    parser.add_argument(
        "--run", dest="run_folder", type=Path, default=Path("runs/gpu/energy"), help="folder of the run"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it, the start included")
    parser.set_defaults(run=run, rest=[], resumes="run_folder")


def run(args: argparse.Namespace) -> int:
    """The whole script; its exit status."""
    started = time.monotonic()
    config, rows = flags(args.rest, args.bundle, tiny=args.tiny), list[dict[str, Any]]()
    result: dict[str, Any] = {"command": "gpu energy", "rows": rows}

    def told(check: dict[str, Any]) -> None:
        rows.append({"what": "check", **{name: check[name] for name in SHOWN}})
        common.save(args, result)

    common.save(args, result)
    try:
        with sitting(args.minutes - (time.monotonic() - started) / 60):
            found = energy_device.train(
                config, datasets.data_root(args.data), args.run_folder, args.device, told
            )
        last = {"returns": found["returns"], "minutes": found["training_minutes"]}
    except Paused as pause:
        last = {"paused": str(pause)}
    rows.append({"what": "training", **last})
    common.finish(args, {**result, "finished": "paused" not in last}, ("what", *SHOWN))
    return 0


def main() -> None:
    console.main(fill, "python -m benchmarks.gpu.energy")


if __name__ == "__main__":
    main()
