"""What the commands share: arguments, the bundle and images that they name, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from metastable import bundle, console, datasets, settings
from metastable.bundle import shipped
from metastable.console import beside
from metastable.datasets import options
from metastable.datasets.folder import labeller_of
from metastable.errors import DataError, SettingsError
from metastable.evaluation.pool import Here, Pool

RAY = "auto, the address of its head (127.0.0.1:6379), or `local` to start one on this machine"


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command."""
    parser.add_argument(
        "--bundle",
        type=shipped.path,
        default=Path("model_store/cifar10"),
        help="folder of the bundle, or a shipped one's name",
    )
    add_data(parser)
    console.add_out(parser, "write the JSON line here as well, tables and pictures beside it")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Arguments that choose a data set."""
    parser.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
    parser.add_argument("--dataset", default="cifar10", choices=tuple(datasets.DATASETS), help="whose images")
    options.add(parser, "--dataset", "--data")


def no_data(parser: argparse.ArgumentParser, why: str, *but: str) -> None:
    """Refuse the options of `add_data`, except `but`, in a command that takes its images from elsewhere."""
    names = ("--data", "--dataset", "--images", *options.ALL)
    console.idle(parser, *(name for name in names if name not in but), why=why)


def common() -> argparse.ArgumentParser:
    """Arguments of every command, as a parent parser."""
    parser = argparse.ArgumentParser(add_help=False)
    add_common(parser)
    return parser


def chosen() -> argparse.ArgumentParser:
    """Arguments that choose settings, as a parent parser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--settings", help="names separated by commas (default: all)")
    parser.add_argument("--settings-file", type=Path, help="take settings from here, not from the bundle")
    return parser


def add_skip(parser: argparse.ArgumentParser) -> None:
    """The argument that leaves images to others, such as those that settings were tuned on."""
    parser.add_argument("--skip", type=count, default=0, help="leave out the first images of the fixed order")


def add_work(parser: argparse.ArgumentParser, what: str = "outcomes") -> None:
    """The run folder of a command that goes on where it stopped."""
    parser.add_argument("--work", type=Path, required=True, help=f"folder of the {what}; resumed")
    parser.set_defaults(resumes="work")


def add_ray(parser: argparse.ArgumentParser, device: bool = False) -> None:
    """Arguments of a command whose work a Ray cluster can do; `device` where the command has --device."""
    parser.add_argument("--ray", metavar="ADDRESS", help=f"do the work on a Ray cluster: {RAY}")
    parser.add_argument(
        "--ray-threads", type=from_one, default=1, help="PyTorch's threads of a task, and the CPUs it takes"
    )
    console.idle(parser, "--ray-threads", without="--ray")
    if device:
        parser.add_argument(
            "--ray-gpus", type=fraction, default="1", help="GPUs that a task takes where --device is one"
        )
        console.idle(parser, "--ray-gpus", without="--ray")
        console.idle(parser, "--ray-gpus", without="--device")


@contextlib.contextmanager
def pool(args: argparse.Namespace) -> Iterator[Pool]:
    """Where the work is done: in this process, or on the cluster of --ray until this ends.

    Raises what `on_ray.connected` raises.
    """
    if args.ray is None:
        yield Here()
        return
    from metastable.evaluation.on_ray import connected  # an optional package, and seconds to import

    gpus = 0.0 if getattr(args, "device", "cpu") == "cpu" else args.ray_gpus
    with connected(args.ray, threads=args.ray_threads, gpus=gpus) as cluster:
        yield cluster


def load_bundle(args: argparse.Namespace) -> bundle.Bundle:
    """The bundle, with its settings replaced by those of --settings-file where given."""
    loaded = bundle.load(args.bundle)
    if args.settings_file:
        loaded = loaded.with_settings(settings.load(args.settings_file))
    return loaded


def chosen_settings(names: str | None, loaded: bundle.Bundle) -> tuple[str, ...]:
    """The settings in a list separated by commas, all for None; SettingsError for one that is not there."""
    wanted = (
        tuple(dict.fromkeys(name.strip() for name in names.split(","))) if names else loaded.settings.names
    )
    if unknown := sorted(set(wanted) - set(loaded.settings.names)):
        raise SettingsError(f"there are no settings {unknown}: choose from {loaded.settings.names}")
    return wanted


def images(
    args: argparse.Namespace, split: str, loaded: bundle.Bundle | None = None, *, judges: bool = True
) -> datasets.Images:
    """A split of --dataset; or of the folder --images, in the shape of the bundle.

    Where nobody labelled the pictures, their labels are what the bundle's bare classifier says of them.

    Args:
        loaded: the bundle; None loads that of --bundle, where it is needed.
        judges: whether answers are compared with labels; otherwise pictures without labels stay so.
    """
    if not options.given(args):
        return datasets.load(args.dataset, datasets.data_root(args.data), split)
    known = loaded or bundle.load(args.bundle)
    bare = labeller_of(known.classifier) if judges else None
    return options.folder(args, known.shape, known.fit, tuple(known.classes), bare).split(split)


def noted(args: argparse.Namespace, page: str) -> str:
    """A page of accuracies, with what they are where nobody labelled the images."""
    said = getattr(args, "adds", {}).get("accuracy_is")
    return f"{page}\nNobody labelled these images: what is called accuracy is {said}.\n" if said else page


def test_images(args: argparse.Namespace, loaded: bundle.Bundle) -> datasets.Images:
    """The test images that a bundle is judged on (`images`).

    Raises DataError if a data set is of another shape, or of more classes, than the bundle.
    """
    test = images(args, "test", loaded)
    if not isinstance(test, datasets.ImageSet):
        return test
    if tuple(test.images.shape[1:]) != loaded.shape:
        raise DataError(
            f"the bundle {loaded.name} is for images of {loaded.shape}, {args.dataset} has "
            f"{tuple(test.images.shape[1:])}: name another --bundle or --dataset"
        )
    datasets.check_labels(test, len(loaded.classes), f"the bundle {loaded.name}")
    return test


def count(text: str) -> int:
    """A whole number from 0; ValueError for others."""
    found = int(text)
    if found < 0:
        raise ValueError(f"{text!r} is below 0")
    return found


def from_one(text: str) -> int:
    """A whole number from 1; ValueError for others."""
    found = int(text)
    if found < 1:
        raise ValueError(f"{text!r} is below 1")
    return found


def ratio(text: str) -> Fraction:
    """A number like 8/255, 0.5/255 or 0.5, not below 0; ValueError for anything else."""
    above, *below = text.split("/")
    bottom = Fraction(below[0]) if below else Fraction(1)
    if len(below) > 1 or bottom <= 0 or Fraction(above) < 0:
        raise ValueError(f"{text!r} is not a number such as 8/255 or 0.5")
    return Fraction(above) / bottom


def fraction(text: str) -> float:
    """The same as a float."""
    return float(ratio(text))


def fractions(text: str) -> list[float]:
    """Several of them, separated by commas."""
    return [fraction(one) for one in text.split(",")]


def whole_numbers(text: str) -> list[int]:
    """Whole numbers from 1, separated by commas; ValueError for others."""
    found = [int(one) for one in text.split(",")]
    if min(found) < 1:
        raise ValueError(f"{text!r} has a number below 1")
    return found


def attack_arguments(parser: argparse.ArgumentParser, several_radii: bool = False) -> None:
    """What every command that attacks test images takes (metastable.attacks.catalogue.Options).

    With `several_radii`, --eps is a list.
    """
    add_skip(parser)
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"), help="of the ball around an image")
    if several_radii:
        parser.add_argument(
            "--eps", type=fractions, default="8/255", help="radius of the ball; several for a suite"
        )
    else:
        parser.add_argument("--eps", type=fraction, default="8/255", help="radius of the ball")
    parser.add_argument("--step", type=fraction, help="length of a step (default: eps / 4; mim: eps / steps)")
    parser.add_argument("--steps", type=from_one, help="steps of the attack (default: the attack's own)")
    parser.add_argument(
        "--samples", type=from_one, help="EOT samples, H_adv (default: 16 annealed, 15 others)"
    )
    parser.add_argument("--check", type=from_one, default=150, help="chains that confirm a break, H_def")
    parser.add_argument("--batch", type=from_one, default=4, help="images attacked together")
    parser.add_argument("--seed", type=console.seed, default=0, help="of the attack")


def check_device(name: str) -> str:
    """The device's name; DataError for a GPU that PyTorch does not find."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DataError("PyTorch finds no CUDA device here: leave --device out")
    return name


def machine(device: str = "cpu", pool: Pool | None = None) -> str:
    """The processor, its cores, the GPU where one is used, and PyTorch's version, for the record.

    Beside them what else a pool has; whether it has the device is not known here.
    """
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    here = pool is None or pool.here
    gpu = "" if device == "cpu" or not here else f", {torch.cuda.get_device_name()}"
    return f"{name}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}" + (
        "" if pool is None else pool.about
    )


def publish(out: Path | None, text: str, draw: Callable[[Path], None]) -> None:
    """Print a table; with --out write it and its picture beside."""
    if (page := beside(out, ".md")) and (picture := beside(out, ".png")):
        page.write_text(text)
        draw(picture)
    print(text)


Summary = dict[str, Any]
"""What a command measured; it is printed as one JSON line."""
