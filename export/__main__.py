"""Command line of export.

bundle     write a bundle from training runs
harden     write a bundle from a run of the trainer `harden` and a bundle with a detector
bring      write a bundle with a classifier of your own
settings   put other settings into a bundle
all        write every artifact of a bundle that can exist here, each compared with float64
mar        write a TorchServe archive from a bundle
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from export import artifacts, bring, hardened, mar, real_images, runs
from export.kinds import KINDS, Source
from metastable import bundle
from metastable.errors import BundleError, MetastableError, SettingsError

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("bundle", help="write a bundle from training runs")
    for part in runs.PARTS:
        first.add_argument(
            f"--{part.replace('_', '-')}", type=Path, required=part == "classifier", help="run folder"
        )
    first.add_argument("--settings", type=Path, required=True)
    first.add_argument("--name", default="cifar10")
    first.add_argument("--out", type=Path, required=True)
    second = commands.add_parser("mar", help="write a TorchServe archive from a bundle")
    second.add_argument("--bundle", type=Path, default=Path("model_store/cifar10"))
    second.add_argument("--config", type=Path, default=Path("model-config.yaml"))
    second.add_argument(
        "--artifacts", type=Path, help="folder that `all` wrote, for runners that read more than ONNX graphs"
    )
    second.add_argument("--out", type=Path, default=Path("model_store/metastable.mar"))
    _add_all(commands.add_parser("all", help="write every artifact of a bundle that can exist here"))
    _add_bring(commands.add_parser("bring", help="write a bundle with a classifier of your own"))
    third = commands.add_parser("settings", help="put other settings into a bundle")
    third.add_argument("--bundle", type=Path, required=True)
    third.add_argument("--settings", type=Path, required=True)
    _add_harden(commands.add_parser("harden", help="write a bundle from a run of the trainer `harden`"))
    args = parser.parse_args()
    result: dict[str, Any]
    try:
        if args.command == "bundle":
            folders = {part: getattr(args, part) for part in runs.PARTS if getattr(args, part)}
            runs.build(folders, args.settings, args.name, args.out)
            result = {"command": "bundle", "out": str(args.out), "parts": list(folders)}
        elif args.command == "harden":
            sizes = hardened.build(args.run, args.base, args.settings, args.name or args.out.name, args.out)
            result = {"command": "harden", "out": str(args.out), "bytes": sizes}
        elif args.command == "bring":
            result = {"command": "bring", "out": str(args.out), **_bring(args)}
        elif args.command == "settings":
            bundle.set_settings(args.bundle, _text(args.settings))
            result = {"command": "settings", "bundle": str(args.bundle)}
        elif args.command == "all":
            result = {"command": "all", "out": str(args.out), **_all(args)}
        else:
            digest = mar.build(args.bundle, args.config, args.out, args.artifacts)
            result = {"command": "mar", "out": str(args.out), "sha256": digest}
    except MetastableError as error:
        parser.exit(2, f"{error}\n")
    print(json.dumps(result))


def _add_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, default=Path("model_store/cifar10"))
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
    parser.add_argument(
        "--images", type=int, default=200, help="real images to judge by (default %(default)s)"
    )


def _all(args: argparse.Namespace) -> dict[str, Any]:
    loaded = bundle.load(args.bundle)
    calibration = None
    if args.calibration_data:
        calibration, real = real_images.of_data(Path(args.calibration_data), loaded.shape, args.images)
    else:
        real = real_images.of_folder(SAMPLES, loaded.shape, args.images)
    source = Source(loaded, calibration, real)
    outcomes = artifacts.build(source, args.out, [kind.strip() for kind in args.only.split(",")])
    for one in outcomes:
        seconds = f"built in {one.build_seconds:.1f} s, judged in {one.judge_seconds:.1f} s"
        told = {"skipped": one.reason, "kept": "as it was", "made": seconds}[one.state]
        print(f"{one.kind:20} {one.state:8} {one.bytes / 1e6:6.1f} MB  {told}")
    return {"images": len(real), "artifacts": [dataclasses.asdict(one) for one in outcomes]}


def _add_harden(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="run folder, or its copies")
    parser.add_argument(
        "--base", type=Path, default=Path("model_store/cifar10"), help="a bundle with a detector"
    )
    parser.add_argument("--settings", type=Path, default=Path("model_store/hardened-settings.yaml"))
    parser.add_argument("--name", help="of the new bundle (default: that of its folder)")
    parser.add_argument("--out", type=Path, required=True)


def _add_bring(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--onnx", type=Path, help="graph of float32 [batch, channels, size, size] to logits")
    kinds.add_argument("--state-dict", type=Path, help="safetensors weights of --network")
    kinds.add_argument("--torch-export", type=Path, help="refused, with what to do instead")
    parser.add_argument("--network", default="whitened", help="of --state-dict: whitened, or wrn-28-10")
    parser.add_argument("--classes", type=Path, required=True, help="text file, one class name a line")
    parser.add_argument("--size", type=int, required=True, help="height and width of its images")
    parser.add_argument("--mean", type=_numbers, required=True, help="by channel, of images in [0, 1]")
    parser.add_argument("--std", type=_numbers, required=True)
    parser.add_argument(
        "--base", type=Path, default=Path("model_store/cifar10"), help="a bundle that purifies"
    )
    parser.add_argument("--name", help="of the new bundle (default: that of its folder)")
    parser.add_argument("--check-images", type=Path, help="folder of images for the natural accuracy")
    parser.add_argument("--check-labels", type=Path, help="their CSV file, with the columns file and label")
    parser.add_argument("--out", type=Path, required=True)


def _bring(args: argparse.Namespace) -> dict[str, Any]:
    if args.torch_export:
        raise BundleError(bring.TORCH_EXPORT)
    if bool(args.check_images) != bool(args.check_labels):
        raise BundleError("--check-images and --check-labels belong together")
    newcomer = bring.Newcomer(
        file=args.onnx or args.state_dict,
        network=args.network if args.state_dict else None,
        classes=args.classes,
        size=args.size,
        mean=args.mean,
        std=args.std,
    )
    labelled = (args.check_images, args.check_labels) if args.check_images else None
    return bring.bring(newcomer, args.base, args.out, name=args.name or args.out.name, labelled=labelled)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(value) for value in text.split(","))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


if __name__ == "__main__":
    main()
