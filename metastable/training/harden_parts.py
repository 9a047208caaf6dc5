"""The networks that `harden` starts from, and the files that it leaves them in."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metastable import bundle
from metastable.bundle import ARCHITECTURES, shipped
from metastable.errors import BundleError, DataError
from metastable.networks.classifier import WhitenedNet
from metastable.networks.score import ScoreNetwork
from metastable.training import harden_brought
from metastable.training.harden_brought import Brought
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_pipeline import Pipeline, TrainingWalk

PARTS_FILE = "parts.json"
"""What every part is, beside its file: architecture and arguments, or what bundle.json says of a graph."""


@dataclass(frozen=True)
class Named:
    """A network whose weights may move, with what builds it again."""

    network: nn.Module
    architecture: str
    arguments: dict[str, Any]

    def described(self) -> dict[str, Any]:
        """As in PARTS_FILE."""
        return {"architecture": self.architecture, "arguments": self.arguments}


Part = Named | Brought


def new_classifier(name: str, classes: int = 10) -> Named:
    """A new classifier, with weights that PyTorch's global generator gives.

    Args: name: `compact`, `compact-A-B-C`, `wrn-DEPTH-WIDTH`, `wrn-DEPTH-WIDTH-silu`, `whitened`, or for
        digits `cnn-A-B-C`.

    Raises ValueError for another name.
    """
    if found := re.fullmatch(r"(compact|cnn)-(\d{1,4})-(\d{1,4})-(\d{1,4})", name):
        architecture = "CompactResNet" if found[1] == "compact" else "Cnn"
        arguments: dict[str, Any] = {"widths": [int(width) for width in found.groups()[1:]]}
    elif found := re.fullmatch(r"wrn-(\d{1,3})-(\d{1,2})(-silu)?", name):
        architecture, arguments = "WideResNet", {"depth": int(found[1]), "width": int(found[2])}
        if found[3]:
            arguments["activation"] = "silu"
    elif name in ("compact", "whitened"):
        architecture, arguments = {"compact": "CompactResNet", "whitened": "WhitenedNet"}[name], {}
    else:
        raise ValueError(f"no classifier {name!r}: compact-A-B-C, wrn-D-W, wrn-D-W-silu, whitened, cnn-A-B-C")
    if classes != 10:
        arguments["classes"] = classes
    return Named(ARCHITECTURES[architecture](**arguments), architecture, arguments)


def new_purifier(widths: str, blocks: int, channels: int) -> Named:
    """A new ScoreNetwork of widths "A,B,C" that returns zero at first, so that p = v; ValueError if wrong."""
    numbers = [int(width) for width in widths.split(",")]
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"a purifier has three widths, A,B,C, not {widths!r}")
    a, b, c = numbers
    network = ScoreNetwork(channels, (a, b, c), blocks)
    nn.init.zeros_(network.tail.weight)
    nn.init.zeros_(network.tail.bias)  # type: ignore[arg-type]
    return Named(network, "ScoreNetwork", {"channels": channels, "widths": numbers, "blocks": blocks})


def of_bundle(folder: Path, part: str) -> Named:
    """A part of a bundle with weights that may move where its architecture lets them.

    Raises BundleError for a part that is absent, damaged, or an ONNX graph.
    """
    stored = bundle.stored_part(folder, part)
    if not isinstance(stored.part, bundle.NetworkPart):
        raise BundleError(f"{folder}: its {part} is an ONNX graph, whose weights cannot move")
    state = bundle.module_of(stored, part).state_dict()
    network = ARCHITECTURES[stored.part.architecture](**stored.part.arguments)
    network.load_state_dict(state)
    return Named(network, stored.part.architecture, dict(stored.part.arguments))


def start(config: HardenConfig, images: Tensor) -> dict[str, Part]:
    """The parts of a new run, by name; a function of the configuration's seed.

    Args: images: float32 [N, C, H, W] in [0, 1], some of the training images.

    Raises ValueError or BundleError for parts that there are not, and what `harden_brought.of_bundle` raises.
    """
    torch.manual_seed(config.seed)
    parts: dict[str, Part] = {}
    folder = shipped.path(config.bundle)
    if config.purifies:
        parts["purifier"] = (
            new_purifier(config.purifier, config.purifier_blocks, images.shape[1])
            if config.purifier
            else of_bundle(folder, config.start)
        )
    if not config.classifier and (brought := harden_brought.of_bundle(config, images)) is not None:
        return {**parts, "classifier": brought}
    if config.classifier:
        made = new_classifier(config.classifier)
    else:
        made = of_bundle(folder, "classifier")
        if config.fresh:
            network = ARCHITECTURES[made.architecture](**made.arguments)
            made = Named(network, made.architecture, made.arguments)
    if isinstance(made.network, WhitenedNet) and (config.classifier or config.fresh):
        made.network.fit_whitening(images[:5000])
    parts["classifier"] = _without_average(made)
    return parts


def _without_average(part: Named) -> Named:
    """A classifier that looks at no mirror image, where it has the choice."""
    if hasattr(part.network, "flip_average"):
        part.network.flip_average = False  # type: ignore[assignment]
        return Named(part.network, part.architecture, {**part.arguments, "flip_average": False})
    return part


def check_same(folder: Path, parts: Mapping[str, Part]) -> None:
    """DataError if the run in a folder has another classifier: its bundle is not what it was."""
    path = folder / PARTS_FILE
    if path.exists() and json.loads(path.read_text())["classifier"] != _plain(parts)["classifier"]:
        raise DataError(f"{folder} holds a run of another classifier: choose another --out")


def pipeline_of(parts: Mapping[str, Part], config: HardenConfig) -> Pipeline:
    purifier = parts["purifier"].network if "purifier" in parts else None
    dynamics = TrainingWalk(config.sigma, config.unroll, config.unroll_step, config.unroll_noise)
    return Pipeline(parts["classifier"].network, purifier, dynamics, config.moves)


def put_half(folder: Path, pipeline: Pipeline, parts: Mapping[str, Part]) -> list[Path]:
    """Write `<part>.fp16.safetensors` of the pipeline's weights, and PARTS_FILE; returns the files.

    Weights of two and more dimensions are float16, the rest float32, as in a bundle.  A classifier that came
    as a graph is that graph to the byte, `classifier.onnx`.
    """
    written = []
    for name, network in pipeline.parts().items():
        part = parts[name]
        if isinstance(part, Brought):
            written.append(_put(folder / f"{name}.onnx", part.network.source.model))
        else:
            data = bundle.stored_network(network, part.arguments, half=True).data
            written.append(_put(folder / f"{name}.fp16.safetensors", data))
    text = json.dumps(_plain(parts), indent=2)
    written.append(_put(folder / PARTS_FILE, (text + "\n").encode()))
    return written


def of_files(folder: Path) -> dict[str, Named]:
    """The parts that `put_half` left in a folder, in eval mode.

    Raises BundleError where they are absent or damaged, or one is a graph: `export harden` reads that.
    """
    try:
        described = json.loads((folder / PARTS_FILE).read_text())
        if graphs := [name for name, fields in described.items() if "architecture" not in fields]:
            raise BundleError(
                f"{folder}: {graphs} came as an ONNX graph: make a bundle of it (export harden)"
            )
        data = {name: (folder / f"{name}.fp16.safetensors").read_bytes() for name in described}
    except OSError as error:
        raise BundleError(f"{folder} holds no hardened parts: {error.strerror} ({error.filename})") from None
    made = {}
    for name, fields in described.items():
        part = bundle.NetworkPart(fields["architecture"], fields["arguments"], "")
        network = bundle.module_of(bundle.Stored(part, data[name]), name)
        made[name] = Named(network, part.architecture, part.arguments)
    return made


def put_whole(folder: Path, pipeline: Pipeline, parts: Mapping[str, Part], dataset: str) -> None:
    """Write a folder for every part, like a trainer's: `config.json` and float32 `weights.safetensors`.

    A classifier that came as a graph has none: no trainer made it.
    """
    for name, network in pipeline.parts().items():
        if isinstance(part := parts[name], Brought):
            continue
        (folder / name).mkdir(exist_ok=True)
        config = {"dataset": dataset, **part.described()}
        (folder / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        save_file(tensors, folder / name / "weights.safetensors")


def copy(files: list[Path], to: str) -> None:
    """Copy files into the folder `to`, each replaced whole; with "" nothing is copied."""
    if to:
        Path(to).mkdir(parents=True, exist_ok=True)
        for file in files:
            if file.exists():
                part = Path(to) / f"{file.name}.part"
                shutil.copyfile(file, part)
                part.replace(Path(to) / file.name)


def _plain(parts: Mapping[str, Part]) -> dict[str, Any]:
    """What PARTS_FILE says of parts, as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps({name: part.described() for name, part in parts.items()}))
    return found


def _put(path: Path, data: bytes) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
    return path
