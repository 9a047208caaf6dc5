"""Write bundles from trained networks, and from bundles what serves them."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from export import artifacts, bring_command, hardened, mar, real_images, runs
from export.kinds import KINDS, Materials
from metastable import bundle, console
from metastable.bundle import shipped
from metastable.datasets import options
from metastable.errors import BundleError, SettingsError

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
SHIPPED = Path("model_store/cifar10")


def fill(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of all commands."""
    parser.description = __doc__
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (filled, summary) in COMMANDS.items():
        filled(commands.add_parser(name, help=summary))


def fill_bundle(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of `bundle`."""
    for part in runs.PARTS:
        without = "; without one the bundle only purifies" if part == "classifier" else ""
        flag = f"--{part.replace('_', '-')}"
        parser.add_argument(flag, type=Path, help=f"run folder of the {part}{without}")
    parser.add_argument("--base", type=shipped.path, help="a bundle, or its name, whose parts --keep takes")
    parser.add_argument("--keep", action="append", choices=runs.PARTS, help="a part of the base", default=[])
    console.idle(parser, "--keep", without="--base", why="whose parts it names")
    parser.add_argument("--settings", type=Path, required=True, help="YAML file of the settings")
    parser.add_argument("--name", default="cifar10", help="of the bundle")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.set_defaults(run=_bundle)


def _bundle(args: argparse.Namespace) -> dict[str, Any]:
    folders = {part: getattr(args, part) for part in runs.PARTS if getattr(args, part)}
    if not folders and not args.keep:
        raise BundleError("a bundle needs a part: give the run folder of a score network, or of another")
    runs.build(folders, args.settings, args.name, args.out, base=args.base, kept=args.keep)
    return {"command": "bundle", "out": str(args.out), "parts": [*folders, *args.keep]}


def fill_mar(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of `mar`."""
    parser.add_argument(
        "--bundle", type=shipped.path, default=SHIPPED, help="folder, or a shipped one's name"
    )
    parser.add_argument("--config", type=Path, default=Path("model-config.yaml"), help="of the model")
    parser.add_argument(
        "--artifacts", type=Path, help="folder that `all` wrote, for runners that read more than ONNX graphs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("model_store/metastable.mar"), help="archive to write"
    )
    parser.set_defaults(run=_mar)


def _mar(args: argparse.Namespace) -> dict[str, Any]:
    digest = mar.build(args.bundle, args.config, args.out, args.artifacts)
    return {
        "command": "mar",
        "out": str(args.out),
        "sha256": digest,
        "notes": mar.notes(args.bundle, args.config),
    }


def fill_settings(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of `settings`."""
    parser.add_argument(
        "--bundle", type=shipped.path, required=True, help="folder to change, or a shipped one's name"
    )
    parser.add_argument("--settings", type=Path, required=True, help="YAML file of the settings")
    parser.set_defaults(run=_settings)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    bundle.set_settings(args.bundle, _text(args.settings))
    return {"command": "settings", "bundle": str(args.bundle)}


def fill_all(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of `all`."""
    parser.add_argument(
        "--bundle", type=shipped.path, default=SHIPPED, help="folder, or a shipped one's name"
    )
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="each kind has a folder in it")
    parser.add_argument(
        "--only", default=",".join(KINDS), help="kinds, with commas between (default: all of them)"
    )
    parser.add_argument(
        "--calibration-data",
        type=Path,
        default=os.environ.get("METASTABLE_DATA"),
        help="data folder, or folder of pictures: for 8 bits, and to judge by (default: METASTABLE_DATA)",
    )
    options.add(parser, "--calibration-data")
    parser.add_argument(
        "--n", type=int, help="real images to judge by (default: 200, or fewer where they are large)"
    )
    parser.set_defaults(run=_all)


def _all(args: argparse.Namespace) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    calibration, n = None, real_images.judged(loaded.shape) if args.n is None else args.n
    if options.given(args):
        calibration, real = real_images.of_folder(options.folder(args, loaded.shape, loaded.fit), n)
    elif args.calibration_data:
        calibration, real = real_images.of_data(Path(args.calibration_data), loaded.shape, n)
    else:
        real = real_images.samples(SAMPLES, loaded.shape, n)
    source = Materials(loaded, calibration, real)
    outcomes = artifacts.build(source, args.out, [kind.strip() for kind in args.only.split(",")])
    for one in outcomes:
        seconds = f"built in {one.build_seconds:.1f} s, judged in {one.judge_seconds:.1f} s"
        told = {"skipped": one.reason, "kept": "as it was", "made": seconds}[one.state]
        print(f"{one.kind:20} {one.state:8} {one.bytes / 1e6:6.1f} MB  {told}")
    return {
        "command": "all",
        "out": str(args.out),
        "images": len(real),
        "artifacts": [dataclasses.asdict(one) for one in outcomes],
    }


def fill_harden(parser: argparse.ArgumentParser) -> None:
    """Make the parser that of `harden`."""
    parser.add_argument(
        "--run", dest="run_folder", type=Path, required=True, help="run folder, or its copies"
    )
    parser.add_argument(
        "--base", type=shipped.path, default=SHIPPED, help="a bundle with a detector, or its name"
    )
    parser.add_argument(
        "--settings", type=Path, default=Path("model_store/hardened-settings.yaml"), help="YAML file"
    )
    parser.add_argument("--name", help="of the new bundle (default: that of its folder)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.set_defaults(run=_harden)


def _harden(args: argparse.Namespace) -> dict[str, Any]:
    sizes = hardened.build(args.run_folder, args.base, args.settings, args.name or args.out.name, args.out)
    return {"command": "harden", "out": str(args.out), "bytes": sizes}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


COMMANDS = {
    "bundle": (fill_bundle, "write a bundle from training runs"),
    "harden": (fill_harden, "write a bundle from a run of the trainer `harden` and a bundle with a detector"),
    "bring": (bring_command.fill, "defend a classifier of your own"),
    "settings": (fill_settings, "put other settings into a bundle"),
    "all": (fill_all, "write every artifact of a bundle that can exist here, each compared with float64"),
    "mar": (fill_mar, "write a TorchServe archive from a bundle"),
}


def main() -> None:
    console.main(fill, "python -m export")


if __name__ == "__main__":
    main()
