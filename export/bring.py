"""Put a classifier that somebody else trained behind the purification of a bundle.

Nothing of theirs is executed: an ONNX graph is data for ONNX Runtime, a state dict is safetensors.  What has
to be changed about a graph is changed once, said, and recorded in the bundle (export.adapt).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export import adapt, runs
from export.adapt import Adapted
from export.newcomer import WEIGHTS, Newcomer, check_normalization, declared, normalized, wishes
from export.probes import gradients, noise, probe
from metastable import bundle
from metastable.bundle import architectures, files, weights
from metastable.datasets import Folder, ImageSet, to_float
from metastable.datasets.folder import BATCH, labeller_of
from metastable.errors import BundleError
from metastable.evaluation.stats import wilson
from metastable.images import STRETCH, Fit
from metastable.networks.classifier import Normalize

LEAST = 20
TRIED = 64
"""Pictures that a classifier is looked at with before anything is written."""


@dataclass(frozen=True)
class Prepared:
    """A classifier that can become a part of a bundle.

    Attributes:
        stored: as the bundle keeps it.
        shape: (channels, height, width) of its images.
        fit: how a picture becomes one.
        classes: their names.
        raw: bytes that were brought.
        changes: what was found and changed, a sentence each.
    """

    stored: bundle.Stored
    shape: tuple[int, int, int]
    fit: Fit
    classes: list[str]
    raw: bytes
    changes: tuple[str, ...]


def bring(
    newcomer: Newcomer,
    base: Path,
    out: Path,
    *,
    name: str,
    pictures: Folder | None = None,
    before: Callable[[str], None] = lambda digest: None,
) -> dict[str, Any]:
    """Write bundle `out`: that of `base` with the newcomer as its classifier; returns what was found.

    Args:
        base: a bundle; where it has a classifier its images are of that one's shape, else of the newcomer's.
        name: of the new bundle.
        pictures: of the owner, labelled or not, to look at the classifier with.
        before: called before anything is written with the SHA-256 of the classifier as it is stored.

    Raises what `before` raises, BundleError for a classifier that is refused, that fails a check, or of which
    more must be said; DataError for pictures or names that cannot be used.
    """
    old, digest = _base(base)
    prepared = prepare(newcomer, old, pictures)
    network = bundle.module_of(prepared.stored, newcomer.file.name)
    checks = probe(network, prepared.shape, len(prepared.classes))
    looked = None if pictures is None else look(network, prepared, pictures)
    provenance = bundle.Provenance(
        command=newcomer.command(),
        inputs={"classifier": files.digest(prepared.raw), "base": digest},
        checks=tuple([*checks, *prepared.changes][:32]),
    )
    before(prepared.stored.part.sha256)
    bundle.rewrite(
        base,
        out,
        prepared.stored,
        name=name,
        classes=prepared.classes,
        shape=prepared.shape,
        fit=prepared.fit,
        provenance=provenance,
    )
    made = bundle.load(out)
    images = noise(prepared.shape)
    with torch.inference_mode():
        if not torch.equal(made.classifier(images), network(images)):
            raise BundleError(f"{out} does not compute what was brought: this is a bug")
    return {
        "classifier": prepared.stored.part.kind,
        "classes": len(prepared.classes),
        "shape": list(prepared.shape),
        "resized": getattr(prepared.stored.part, "resize", None) is not None,
        "fit": dataclasses.asdict(prepared.fit),
        "changes": list(prepared.changes),
        "checks": checks,
        "looked": looked,
        "gradients": gradients(network, images),
    }


def prepare(newcomer: Newcomer, old: tuple[int, int, int] | None, pictures: Folder | None = None) -> Prepared:
    """Find out what a classifier needs; `old` is the shape of the base's images where it has a classifier.

    Raises what `bring` raises.
    """
    if newcomer.file.suffix == WEIGHTS:
        return _state_dict(newcomer, old)
    found = declared(newcomer)
    try:
        adapted = adapt.adapt(newcomer.file, wishes(newcomer, found))
    except BundleError as error:
        if found is not None and newcomer.wishes.size is None and "not" in str(error):
            raise BundleError(f"{error} ({'; '.join(found.notes)})") from None
        raise
    classes = adapt.class_names(newcomer.classes, adapted.classes)
    shape = old or (adapted.channels, adapted.height, adapted.width)
    if shape[0] != adapted.channels:
        raise BundleError(
            f"the base purifies images of {shape[0]} channels and the classifier takes {adapted.channels}: "
            "name another --base, such as natural, which takes 1 or 3"
        )
    fit = newcomer.fit or (found.fit if found else STRETCH)
    adapted = normalized(newcomer, adapted, found)
    adapted, how = _decided(newcomer, adapted, shape, fit, classes, pictures)
    said = [*(found.notes if found else ()), *how]
    if old and old[1:] != (adapted.height, adapted.width):
        said.append(f"the base purifies at {old[1]} x {old[2]}: what comes out is resized for the classifier")
    return Prepared(_stored(adapted, shape), shape, fit, classes, _raw(newcomer), (*adapted.changes, *said))


def _raw(newcomer: Newcomer) -> bytes:
    file = newcomer.file.resolve()  # model caches are made of links
    return files.read(file.parent, file.name, files.PART_BYTES)


def _stored(adapted: Adapted, shape: tuple[int, int, int]) -> bundle.Stored:
    size = adapted.height, adapted.width
    _, height, width = shape
    return bundle.stored_onnx(
        adapted.graph, size=size, mean=adapted.mean, std=adapted.std, to=(height, width)
    )


def _decided(
    newcomer: Newcomer,
    adapted: Adapted,
    shape: tuple[int, int, int],
    fit: Fit,
    classes: list[str],
    pictures: Folder | None,
) -> tuple[Adapted, list[str]]:
    """With the order, range and normalization under which labelled pictures are answered best, and how well.

    Raises BundleError where they are needed and there are none, or no way answers better than chance.
    """
    name, open_ = newcomer.file.name, set(adapted.undecided) & {"order", "range", "normalization"}
    if not open_:
        return adapted, []
    if pictures is None or pictures.labels is None:
        if open_ == {"order"}:
            return adapted, ["its colours are taken for RGB; if they are BGR, say --order bgr"]
        raise BundleError(
            f"what {name} was trained with is not known: give --mean and --std, of images in [0, 1] (0 and 1 "
            "where the graph normalizes by itself), or labelled pictures to try them on (--images, --labels)"
        )
    some = _pictures(pictures, shape, fit, classes).split("train").take(TRIED)
    found = [
        (_right(bundle.module_of(_stored(one, shape), name), some), what, one)
        for what, one in adapt.alternatives(adapted)
    ]
    (best, what, one), *rest = sorted(found, key=lambda each: -each[0])
    low, _ = wilson(round(best * len(some)), len(some))
    if low <= 1 / len(classes):
        raise BundleError(
            f"{name} answers {best:.0%} of {len(some)} labelled pictures under the best of {len(found)} "
            "ways to normalize: check --labels and the order of --classes, or give --mean and --std"
        )
    said = f"{what} answers {best:.0%} of {len(some)} labelled pictures"
    if rest and len(some) < LEAST and rest[0][0] == best:
        raise BundleError(
            f"{len(some)} labelled pictures cannot tell {what} from {rest[0][1]} ({best:.0%} right both): "
            f"give {LEAST} or more, or --mean and --std"
        )
    if rest:
        said += f"; the next best, {rest[0][1]}, {rest[0][0]:.0%}"
    return one, [said]


def look(network: nn.Module, prepared: Prepared, pictures: Folder) -> dict[str, Any]:
    """What the classifier says of pictures as they come, without purification.

    Of labelled ones its accuracy, with Wilson's interval; of others the share that the most frequent answer
    has, a warning where that is nearly all, and how sure it is of its answers.
    """
    folder = _pictures(pictures, prepared.shape, prepared.fit, prepared.classes)
    some = folder.split("train").take(10 * TRIED)
    told = {"n": len(some)} | {key: some.about[key] for key in ("skipped", "skipped_files")}
    if pictures.labels is not None:
        right = _right(network, some)
        low, high = wilson(round(right * len(some)), len(some))
        return told | {"accuracy": round(right, 4), "low": round(low, 4), "high": round(high, 4)}
    logits = torch.cat([_logits(network, part) for part in torch.split(some.images, BATCH)])
    answers = logits.argmax(1)
    most = int(answers.bincount().max())
    return told | {
        "most_frequent": round(most / len(some), 4),
        "median_probability": round(float(logits.softmax(1).amax(1).median()), 4),
        "warning": adapt.one_class_warning(answers.tolist()),
    }


def _pictures(pictures: Folder, shape: tuple[int, int, int], fit: Fit, classes: Sequence[str]) -> Folder:
    return dataclasses.replace(pictures, shape=shape, fit=fit, names=tuple(classes))


def _right(network: nn.Module, some: ImageSet) -> float:
    return float((_answers(network, some) == some.labels).double().mean())


@torch.inference_mode()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    found: Tensor = network(to_float(images))
    return found


def _answers(network: nn.Module, some: ImageSet) -> Tensor:
    says = labeller_of(network)
    return torch.cat([says(to_float(part)) for part in torch.split(some.images, BATCH)])


def _base(base: Path) -> tuple[tuple[int, int, int] | None, str]:
    """The shape that images get, None where the base takes any, and the base's digest."""
    if bundle.classifies(base):
        old = bundle.load(base)
        return old.shape, old.digest
    return None, bundle.load_purifier(base).digest


def _state_dict(newcomer: Newcomer, old: tuple[int, int, int] | None) -> Prepared:
    """Weights of one of our networks, which take images of 32 x 32."""
    name, mean, std = newcomer.file.name, newcomer.mean, newcomer.std
    shape = old or (3, *(newcomer.wishes.size or (32, 32)))
    if newcomer.wishes.size not in (None, shape[1:]):
        raise BundleError(
            f"{name} is for images of {shape[1]} x {shape[2]}: leave --size out, or bring an ONNX graph"
        )
    if mean is None or std is None:
        raise BundleError(f"{name} needs --mean and --std: it was trained on (x - mean) / std of x in [0, 1]")
    if newcomer.classes is None:
        raise BundleError(
            f"{name} needs --classes, a file of class names: a state dict does not say how many"
        )
    check_normalization(mean, std, shape[0])
    classes = adapt.class_names(newcomer.classes, None)
    raw = _raw(newcomer)
    architecture, arguments = runs.classifier_of(newcomer.network)
    arguments |= {"classes": len(classes), "flip_average": False}
    architectures.check_arguments(architecture, arguments, "classifier")
    declared = {f"normalize.{key}": value for key, value in Normalize(mean, std).state_dict().items()}
    tensors = weights.read(raw, name)
    for key, value in declared.items():
        if key in tensors and not torch.allclose(tensors[key], value, atol=1e-3):
            raise BundleError(f"{name}: its {key} is not the one that is declared")
    network = architectures.build(name, architecture, arguments, {**declared, **tensors})
    stored = bundle.stored_network(network, arguments, half=False)
    return Prepared(stored, shape, newcomer.fit or STRETCH, classes, raw, ())
