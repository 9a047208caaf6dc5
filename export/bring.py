"""Put a classifier that somebody else trained behind the purification of a bundle.

Nothing of theirs is executed: an ONNX graph is data for ONNX Runtime, a state dict is safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export import runs
from export.tidy import encode, tidy
from metastable import bundle
from metastable.bundle import architectures, files, weights
from metastable.datasets import Folder, to_float
from metastable.datasets.folder import BATCH, labeller_of
from metastable.errors import BundleError, DataError, MissingPackage, NoGradient
from metastable.evaluation.stats import wilson
from metastable.networks import onnx_classifier
from metastable.networks.classifier import Normalize
from metastable.networks.onnx_gradient import Differentiable

TORCH_EXPORT = (
    "a program of torch.export is not taken: loading one unpickles its constants and evaluates its size "
    "expressions as Python, so it could run anything; make an ONNX graph of it with torch.onnx.export and "
    "pass that with --onnx (docs/bring-your-own.md)"
)
PROBES = 5
TOLERANCE = 1e-3  # of logits, relative to the largest; other batch sizes take other kernels


@dataclass(frozen=True)
class Newcomer:
    """A classifier as its owner declares it.

    Attributes:
        file: an ONNX graph (network None), or a safetensors state dict of `network`.
        network: `whitened` or `wrn-<depth>-<width>`.
        classes: file of class names in the order of the logits, one a line.
        size: height and width of its images.
        mean, std: by channel; it was trained on (x - mean) / std of images x in [0, 1].
    """

    file: Path
    network: str | None
    classes: Path
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def command(self) -> str:
        """What was run, with the last names of paths."""
        kind = ["--onnx", self.file.name]
        if self.network:
            kind = ["--state-dict", self.file.name, "--network", self.network]
        numbers = {"mean": self.mean, "std": self.std}
        given = [f"--{key} {','.join(f'{v:g}' for v in values)}" for key, values in numbers.items()]
        return " ".join(
            ["export bring", *kind, f"--classes {self.classes.name}", f"--size {self.size}", *given]
        )


def bring(
    newcomer: Newcomer, base: Path, out: Path, *, name: str, labelled: tuple[Path, Path] | None = None
) -> dict[str, Any]:
    """Write bundle `out`: that of `base` with the newcomer as its classifier; returns what was found.

    Args:
        name: of the new bundle.
        labelled: a folder of images and a CSV file with columns file and label, for the natural accuracy.

    Raises BundleError for a classifier that is refused or fails a check, DataError for wrong lists.
    """
    shape, digest = _base(base, newcomer)
    names = class_names(newcomer.classes)
    raw = files.read(newcomer.file.parent, newcomer.file.name, files.PART_BYTES)
    stored = _stored(newcomer, raw, shape, len(names))
    network = bundle.module_of(stored, newcomer.file.name)
    checks = probe(network, shape, len(names))
    accuracy = None if labelled is None else natural_accuracy(network, shape, names, *labelled)
    provenance = bundle.Provenance(
        command=newcomer.command(),
        inputs={"classifier": files.digest(raw), "base": digest},
        checks=tuple(checks),
    )
    bundle.rewrite(base, out, stored, name=name, classes=names, shape=shape, provenance=provenance)
    made = bundle.load(out)
    images = _images(shape)
    with torch.inference_mode():
        if not torch.equal(made.classifier(images), network(images)):
            raise BundleError(f"{out} does not compute what was brought: this is a bug")
    return {
        "classifier": stored.part.kind,
        "classes": len(names),
        "size": newcomer.size,
        "resized": newcomer.size != shape[1],
        "checks": checks,
        "natural": accuracy,
        "gradients": gradients(network, images),
    }


def gradients(network: nn.Module, images: Tensor) -> str:
    """Whether white-box attacks and hardening can use it, in words.  A graph is converted for it."""
    if not isinstance(network, onnx_classifier.OnnxClassifier):
        return "its own"
    try:
        Differentiable(network, images)
    except (NoGradient, MissingPackage) as error:
        return f"none: {error}"
    return "by conversion to PyTorch, which agrees with ONNX Runtime"


def class_names(path: Path) -> list[str]:
    """The class names in a text file, one a line; DataError if it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the class names cannot be read: {error}") from None


@torch.inference_mode()
def probe(network: nn.Module, shape: tuple[int, int, int], classes: int) -> list[str]:
    """Ask the network about a batch of noise images and say what holds of its logits.

    Raises BundleError if they have the wrong shape, are not finite, are probabilities, do not depend on
    the image, or depend on what else is in the batch or on how large it is.
    """
    images = _images(shape)
    logits: Tensor = network(images)
    if tuple(logits.shape) != (PROBES, classes):
        found = list(logits.shape)
        raise BundleError(
            f"the classifier makes {found} of {PROBES} images, and there are {classes} class names"
        )
    if not bool(logits.isfinite().all()):
        raise BundleError("the classifier gives logits that are not finite numbers")
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        raise BundleError("the classifier gives probabilities: leave out its softmax, logits are wanted")
    allowed = TOLERANCE * max(1.0, float(logits.abs().max()))
    if bool((logits.amax(0) - logits.amin(0) < 1e-6).all()):
        raise BundleError("the classifier gives the same logits for every image")
    alone = torch.cat([network(image[None]) for image in images])
    if not torch.allclose(alone, logits, rtol=0, atol=allowed):
        raise BundleError(
            f"the classifier answers one image and {PROBES} differently: is it in training mode?"
        )
    backwards = network(images.flip(0)).flip(0)
    if not torch.allclose(backwards, logits, rtol=0, atol=allowed):
        raise BundleError("the classifier's answer depends on the other images of a batch")
    return [
        f"logits [{PROBES}, {classes}], finite, no probabilities",
        f"batches of 1 and {PROBES} agree",
        "rows do not depend on each other",
    ]


def natural_accuracy(
    network: nn.Module, shape: tuple[int, int, int], names: list[str], folder: Path, labels: Path
) -> dict[str, Any]:
    """Accuracy on labelled images as they come, without purification, with its Wilson interval.

    `labels` is a CSV file of pictures in `folder` and their classes (metastable.datasets.labels).  Pictures
    that cannot be read are skipped, and told.  Raises DataError for a line that cannot be used.
    """
    pictures = Folder(path=folder, shape=shape, labels=labels, names=tuple(names), test_share=1)
    found = pictures.split("test").whole()
    says, right = labeller_of(network), 0
    for x, y in zip(torch.split(found.images, BATCH), torch.split(found.labels, BATCH), strict=True):
        right += int((says(to_float(x)) == y).sum())
    n = len(found)
    low, high = wilson(right, n)
    accuracy = {"n": n, "accuracy": round(right / n, 4), "low": round(low, 4), "high": round(high, 4)}
    return accuracy | {key: found.about[key] for key in ("skipped", "skipped_files")}


def _base(base: Path, newcomer: Newcomer) -> tuple[tuple[int, int, int], str]:
    """The shape that images get, the newcomer's own where the base takes any, and the base's digest."""
    if bundle.classifies(base):
        old = bundle.load(base)
        return old.shape, old.digest
    return (len(newcomer.mean), newcomer.size, newcomer.size), bundle.load_purifier(base).digest


def _stored(newcomer: Newcomer, raw: bytes, shape: tuple[int, int, int], classes: int) -> bundle.Stored:
    mean, std, size = newcomer.mean, newcomer.std, newcomer.size
    if len(mean) != shape[0] or len(std) != shape[0] or min(std) <= 0:
        raise BundleError(f"--mean and --std need {shape[0]} numbers each, for the channels; std above 0")
    if newcomer.network is None:
        graph = encode(tidy(onnx_classifier.parse_graph(raw, newcomer.file.name)))
        return bundle.stored_onnx(graph, size=(size, size), mean=mean, std=std, to=shape[1:])
    if size != shape[1]:
        raise BundleError(
            f"--size must be {shape[1]}, the base's, for a state dict: bring it as ONNX instead"
        )
    architecture, arguments = runs.classifier_of(newcomer.network)
    arguments |= {"classes": classes, "flip_average": False}
    architectures.check_arguments(architecture, arguments, "classifier")
    normalize = Normalize(mean, std)
    declared = {f"normalize.{key}": value for key, value in normalize.state_dict().items()}
    tensors = weights.read(raw, newcomer.file.name)
    for key, value in declared.items():
        if key in tensors and not torch.allclose(tensors[key], value, atol=1e-3):
            raise BundleError(f"{newcomer.file.name}: its {key} is not the one that is declared")
    network = architectures.build(newcomer.file.name, architecture, arguments, {**declared, **tensors})
    return bundle.stored_network(network, arguments, half=False)


def _images(shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(PROBES, *shape, generator=torch.Generator().manual_seed(0))
