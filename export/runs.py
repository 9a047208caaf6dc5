"""Build a bundle from the run folders of the trainers."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from metastable import __version__, bundle
from metastable.bundle import files
from metastable.bundle import manifest as manifest_module
from metastable.bundle.architectures import check_arguments
from metastable.bundle.checks import MANIFEST
from metastable.bundle.folder import write_stored
from metastable.bundle.parts import stored_network, stored_part
from metastable.dynamics.base import NETWORKS
from metastable.errors import BundleError
from metastable.images import STRETCH, Fit
from metastable.training import pieces
from metastable.training.run import KEPT, seen_by

PARTS = ("classifier", *NETWORKS)


def network_of(part: str, run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of a run folder and its constructor arguments.

    Of a run that is not finished it takes the weights that were kept last.  BundleError if there are none.
    """
    try:
        config = json.loads((run / "config.json").read_text())
    except OSError as error:
        raise BundleError(f"{run} holds no run: {error.strerror} ({error.filename})") from None
    weights = {k: v.float() if v.is_floating_point() else v for k, v in load(_weights(run)).items()}
    architecture, arguments = _architecture(part, config, run)
    with torch.device("meta"):
        network = bundle.ARCHITECTURES[architecture](**arguments)
    network.load_state_dict(weights, assign=True)
    return network, arguments


def build(
    runs: dict[str, Path],
    settings: Path,
    name: str,
    out: Path,
    *,
    base: Path | None = None,
    kept: Collection[str] = (),
) -> None:
    """Write bundle `out` from {part: run folder}.  The anomaly flag is calibrated afterwards.

    Without a classifier it purifies colour images of any size.

    Args:
        base: folder of a bundle, from which the parts `kept` are taken as they are stored there.

    Raises BundleError for a part that the base has not, or that is given twice.
    """
    if twice := sorted(set(runs) & set(kept)):
        raise BundleError(f"{', '.join(twice)}: take it from a run or from the base, not from both")
    parts = {part: stored_network(*network_of(part, run), half=True) for part, run in runs.items()}
    given = " ".join(f"--{part} {run.name}" for part, run in runs.items())
    inputs = {part: files.digest(_weights(run)) for part, run in runs.items()}
    classes, shape, fit = _seen(runs, base if "classifier" in kept else None)
    if base is not None:
        parts |= {part: stored_part(base, part) for part in kept}
        inputs |= {part: files.digest(parts[part].data) for part in kept}
        given += f" --base {base.name} " + " ".join(f"--keep {part}" for part in kept)
    write_stored(
        out,
        parts,
        name=name,
        version=__version__,
        classes=classes,
        shape=shape,
        settings=settings.read_text(encoding="utf-8"),
        anomaly=None,
        provenance=bundle.Provenance(
            command=f"bundle build {given.strip()} --settings {settings.name} --name {name}", inputs=inputs
        ),
        fit=fit,
    )


def _seen(runs: dict[str, Path], base: Path | None) -> tuple[list[str], tuple[int, ...], Fit]:
    """Classes, shape of images, and how pictures become such, of the run of a classifier or of the base."""
    if base is not None:
        found = manifest_module.parse(files.read(base, MANIFEST, files.MANIFEST_BYTES))
        return found.classes, found.shape, found.fit
    if "classifier" not in runs:
        return [], (3,), STRETCH
    row = seen_by(runs["classifier"])
    return list(row.classes), row.shape, STRETCH


def _weights(run: Path) -> bytes:
    finished = run / "weights.safetensors"
    found = finished.read_bytes() if finished.exists() else pieces.read(run / KEPT)
    if found is None:
        raise BundleError(f"{run} holds no weights: let the run go on for a minute or more")
    return found


def _architecture(part: str, config: dict[str, Any], run: Path) -> tuple[str, dict[str, Any]]:
    if "architecture" in config:  # parts of a run of `harden` say what they are
        return check_arguments(config["architecture"], config["arguments"], part)
    row = seen_by(run)
    channels, size, _ = row.shape
    # What is the default of a network stays out of its description.
    many = {} if len(row.classes) == 10 else {"classes": len(row.classes)}
    if part == "autoencoder":
        return "Autoencoder", {"channels": channels, "variance": config["variance"]}
    if part == "energy" and "sigma" in config:  # a run of `train energy-denoising`
        two = [int(w) for w in config["widths"].split(",")]
        given = {"widths": two, "blocks": config["blocks"], "sigma": config["sigma"]}
        return "DenoisingEnergy", {"channels": channels, **given}
    if part in ("energy", "short_run"):
        arguments = {"channels": channels, "size": size, "features": config["features"]}
        for name, default in (("activation", "leaky"), ("wall", 0.0)):
            if config.get(name, default) != default:
                arguments[name] = config[name]
        return "EnergyNetwork", arguments
    if part in ("score", "purifier"):
        widths = [int(w) for w in config["widths"].split(",")]
        if "patch" in config:  # a run of `train natural`
            return "UnshuffledUNet", {"widths": widths, "blocks": config["blocks"]}
        return "ScoreNetwork", {"channels": channels, "widths": widths, "blocks": config["blocks"]}
    name = config["network"]
    if found := re.fullmatch(r"cnn(?:-(\d{1,4})-(\d{1,4})-(\d{1,4}))?", name):
        cnn: dict[str, Any] = {"widths": [int(width) for width in found.groups()]} if found[1] else {}
        if (channels, size) != (1, 28):
            cnn |= {"channels": channels, "size": size}
        return "Cnn", cnn | many
    architecture, arguments = classifier_of(name)
    return architecture, {**arguments, **many, "flip_average": row.mirrored}


def classifier_of(name: str) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of `whitened`, `wrn-D-W`, `wrn-D-W-silu` or `compact-A-B-C`.

    Raises BundleError for another name.
    """
    if name == "whitened":
        return "WhitenedNet", {}
    if found := re.fullmatch(r"wrn-(\d{1,3})-(\d{1,2})(-silu)?", name):
        arguments: dict[str, Any] = {"depth": int(found[1]), "width": int(found[2])}
        return "WideResNet", {**arguments, "activation": "silu"} if found[3] else arguments
    if found := re.fullmatch(r"compact-(\d{1,4})-(\d{1,4})-(\d{1,4})", name):
        return "CompactResNet", {"widths": [int(width) for width in found.groups()]}
    raise BundleError(f"there is no network {name!r}: choose whitened, wrn-<depth>-<width> or compact-A-B-C")
