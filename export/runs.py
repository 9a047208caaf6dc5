"""Build a bundle from the run folders of the trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from metastable import __version__, bundle, datasets
from metastable.errors import BundleError

PARTS = ("classifier", "score", "energy")


def network_of(part: str, run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of a run folder and its constructor arguments; BundleError if unfinished."""
    try:
        config = json.loads((run / "config.json").read_text())
        weights = load_file(run / "weights.safetensors")
    except OSError as error:
        raise BundleError(f"{run} holds no finished run: {error.strerror} ({error.filename})") from None
    architecture, arguments = _architecture(part, config)
    with torch.device("meta"):
        network = bundle.ARCHITECTURES[architecture](**arguments)
    network.load_state_dict(weights, assign=True)
    return network, arguments


def build(runs: dict[str, Path], settings: Path, name: str, out: Path) -> None:
    """Write bundle `out` from {part: run folder}.  The anomaly flag is calibrated afterwards."""
    networks = {part: network_of(part, run) for part, run in runs.items()}
    dataset = "mnist" if name == "mnist" else "cifar10"
    bundle.write(
        out,
        name=name,
        version=__version__,
        classes=list(datasets.MNIST_CLASSES if dataset == "mnist" else datasets.CIFAR10_CLASSES),
        shape=(1, 28, 28) if dataset == "mnist" else (3, 32, 32),
        networks=networks,
        settings=settings.read_text(encoding="utf-8"),
        anomaly=None,
    )


def _architecture(part: str, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    channels, size = (1, 28) if config.get("dataset") == "mnist" else (3, 32)
    if part == "energy":
        return "EnergyNetwork", {"channels": channels, "size": size, "features": config["features"]}
    if part == "score":
        widths = [int(w) for w in config["widths"].split(",")]
        return "ScoreNetwork", {"channels": channels, "widths": widths, "blocks": config["blocks"]}
    if config["network"] == "whitened":
        return "WhitenedNet", {"flip_average": True}
    _, depth, width = config["network"].split("-")
    return "WideResNet", {"depth": int(depth), "width": int(width), "flip_average": True}
