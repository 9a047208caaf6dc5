"""The networks that a bundle may name, and what they may be given.

A manifest only chooses from this table; its arguments are bounded here, because a network of a
thousand million layers takes for ever to build even where nothing is allocated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from metastable.bundle import checks
from metastable.errors import BundleError
from metastable.networks import channels_last
from metastable.networks.autoencoder import Autoencoder
from metastable.networks.classifier import ACTIVATIONS, WhitenedNet, WideResNet
from metastable.networks.cnn import Cnn
from metastable.networks.compact import CompactResNet
from metastable.networks.denoising_energy import DenoisingEnergy
from metastable.networks.energy import ACTIVATIONS as ENERGY_ACTIVATIONS
from metastable.networks.energy import EnergyNetwork
from metastable.networks.score import ScoreNetwork
from metastable.networks.unshuffled import UnshuffledUNet

CLASSES = 32_768
"""The most classes."""

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "WhitenedNet": WhitenedNet,
    "WideResNet": WideResNet,
    "CompactResNet": CompactResNet,
    "Cnn": Cnn,
    "EnergyNetwork": EnergyNetwork,
    "DenoisingEnergy": DenoisingEnergy,
    "ScoreNetwork": ScoreNetwork,
    "UnshuffledUNet": UnshuffledUNet,
    "Autoencoder": Autoencoder,
}

_Check = Callable[[Any, str], Any]


def _from(low: int, high: int) -> _Check:
    return lambda value, where: checks.whole(value, where, low, high)


def _widths(count: int) -> _Check:
    def check(value: Any, where: str) -> list[int]:
        widths = checks.listing(value, where, count, count)
        return [checks.whole(width, where, 1, 4096) for width in widths]

    return check


_three_widths = _widths(3)


def _one_of(names: Collection[str]) -> _Check:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in names:
            checks.fail(where, f"one of {sorted(names)}")
        return value

    return check


_CLASSES, _CHANNELS = _from(2, CLASSES), _from(1, 3)
ARGUMENTS: dict[str, dict[str, _Check]] = {
    "WhitenedNet": {"classes": _CLASSES, "widths": _three_widths, "flip_average": checks.flag},
    "WideResNet": {
        "depth": _from(10, 202),
        "width": _from(1, 32),
        "classes": _CLASSES,
        "flip_average": checks.flag,
        "activation": _one_of(ACTIVATIONS),
    },
    "CompactResNet": {"classes": _CLASSES, "widths": _three_widths, "flip_average": checks.flag},
    "Cnn": {"classes": _CLASSES, "channels": _CHANNELS, "size": _from(8, 512), "widths": _three_widths},
    "EnergyNetwork": {
        "channels": _CHANNELS,
        "size": _from(8, 512),
        "features": _from(1, 512),
        "activation": _one_of(ENERGY_ACTIVATIONS),
        "wall": lambda value, where: checks.real(value, where, 0.0, 1.0),
    },
    "DenoisingEnergy": {
        "channels": _CHANNELS,
        "widths": _widths(2),
        "blocks": _from(1, 16),
        "sigma": lambda value, where: checks.real(value, where, 1e-3, 1.0),
    },
    "ScoreNetwork": {"channels": _CHANNELS, "widths": _three_widths, "blocks": _from(1, 16)},
    "UnshuffledUNet": {"widths": _three_widths, "blocks": _from(1, 16)},
    "Autoencoder": {
        "channels": _CHANNELS,
        "variance": lambda value, where: checks.real(value, where, 1e-6, 1e3),
    },
}


def check_arguments(architecture: Any, arguments: Any, where: str) -> tuple[str, dict[str, Any]]:
    """An architecture of the table and arguments that it takes; BundleError naming the one that is wrong."""
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        checks.fail(f"{where}.architecture", f"one of {sorted(ARCHITECTURES)}")
    known = ARGUMENTS[architecture]
    if not isinstance(arguments, dict) or not set(arguments) <= set(known):
        checks.fail(f"{where}.arguments", f"a mapping with keys among {sorted(known)}")
    return architecture, {
        key: known[key](value, f"{where}.arguments.{key}") for key, value in arguments.items()
    }


def build(name: str, architecture: str, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The network with these weights, in eval mode.

    Args:
        name: of the part's file, for errors.
        architecture, arguments: as `check_arguments` passed them.
        tensors: the state dict; every name, shape and kind of number must fit, or BundleError is raised.
    """
    try:
        # On the meta device nothing is allocated, however large the arguments claim to be.
        with torch.device("meta"):
            network = ARCHITECTURES[architecture](**arguments).eval()
        for key, expected in network.state_dict().items():
            if key in tensors and tensors[key].is_floating_point() != expected.is_floating_point():
                raise ValueError(f"{key} is of another kind of number")
        network.load_state_dict(tensors, assign=True)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise BundleError(f"{name}: the weights do not fit {architecture}: {checks.short(error)}") from None
    return channels_last(network).eval().requires_grad_(False)


def averages_views(architecture: str, arguments: dict[str, Any]) -> bool:
    """Whether such a classifier answers with the mean over an image and its mirror image."""
    known = inspect.signature(ARCHITECTURES[architecture]).parameters
    default = known["flip_average"].default if "flip_average" in known else False
    return bool(arguments.get("flip_average", default))


def check_network(
    name: str, run: Callable[[Tensor], Tensor], shape: tuple[int, int, int], classes: int | None
) -> None:
    """BundleError naming the part unless `run` takes grey images of `shape` and gives what it must.

    That is finite logits [2, classes], or, with None for classes, a finite score of the images' shape.
    """
    wanted = (2, *shape) if classes is None else (2, classes)
    try:
        with torch.inference_mode():
            made = run(torch.full((2, *shape), 0.5))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise BundleError(f"{name} does not take images {list(shape)}: {checks.short(error)}") from None
    if tuple(made.shape) != wanted or not bool(made.isfinite().all()):
        raise BundleError(
            f"{name} must make finite {list(wanted)} of two images, and made {list(made.shape)}"
        )
