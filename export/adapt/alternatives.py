"""What cannot be seen in a graph: variants to try on labelled images, and a warning without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from onnx import helper

from export.adapt.editor import Editor
from export.adapt.values import Adapted
from export.tidy import encode
from metastable.networks.onnx_classifier import parse_graph

MOST, LEAST_IMAGES = 0.9, 10
BYTES_STD = 0.05
"""A std below it belongs to values of 0 to 255."""


@dataclass(frozen=True)
class Scaling:
    """A mean and a std that people use, for images in [0, 1], channels in the order RGB."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _same(name: str, mean: float, std: float, channels: int) -> Scaling:
    return Scaling(name, (mean,) * channels, (std,) * channels)


def scalings(channels: int) -> list[Scaling]:
    """The usual ones, of values of 0 to 1 and of 0 to 255."""
    shared = [
        _same("values of 0 to 1", 0, 1, channels),
        _same("values of -1 to 1 (mean and std 0.5)", 0.5, 0.5, channels),
        _same("values of 0 to 255", 0, 1 / 255, channels),
    ]
    if channels == 1:
        return [*shared, Scaling("MNIST's mean and std", (0.1307,), (0.3081,))]
    imagenet = (0.485, 0.456, 0.406)
    caffe = tuple(value / 255 for value in (123.68, 116.779, 103.939))
    return [
        *shared,
        Scaling("ImageNet's mean and std", imagenet, (0.229, 0.224, 0.225)),
        Scaling("CIFAR-10's mean and std", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        Scaling("values of 0 to 255 less ImageNet's mean", caffe, (1 / 255,) * 3),
    ]


def alternatives(adapted: Adapted) -> Iterator[tuple[str, Adapted]]:
    """Every combination of what is undecided of order, range and normalization, each with what it is.

    The first is the one that was given where nothing is undecided.  Heights and widths are not tried.
    """
    channels, undecided = adapted.channels, adapted.undecided
    own = Scaling("", adapted.mean, adapted.std)
    tried = [own]
    if "normalization" in undecided:
        tried = scalings(channels)
        if "range" not in undecided:
            same = (one for one in tried if (one.std[0] < BYTES_STD) == (own.std[0] < BYTES_STD))
            tried = [own, *(one for one in same if (one.mean, one.std) != (own.mean, own.std))]
    elif "range" in undecided:
        tried = [one for one in scalings(channels) if not any(one.mean) and one.std[0] in (1, 1 / 255)]
    graphs = [("", adapted.graph)]
    if "order" in undecided:
        graphs = [("RGB", adapted.graph), ("BGR", turned(adapted.graph))]
    left = tuple(one for one in undecided if one not in ("order", "range", "normalization"))
    for order, graph in graphs:
        for scaling in tried:
            name = ", ".join(one for one in (order, scaling.name) if one) or "as it is"
            changes = adapted.changes
            if len(graphs) * len(tried) > 1:
                changes = (*changes, f"by labelled images: {name}")
            yield (
                name,
                replace(
                    adapted, graph=graph, mean=scaling.mean, std=scaling.std, changes=changes, undecided=left
                ),
            )


def turned(graph: bytes) -> bytes:
    """A canonical graph that is given RGB and whose network gets BGR."""
    editor = Editor(parse_graph(graph, "the graph"), "the graph", [])
    value = editor.graph.input[0]
    old, value.name = value.name, editor.fresh("images")
    flip = helper.make_node("Gather", [value.name, editor.hold(np.array([2, 1, 0]))], [old], axis=1)
    editor.before([flip])
    return encode(editor.proto)


def one_class_warning(predictions: ArrayLike | Sequence[int]) -> str | None:
    """A sentence where more than MOST of at least LEAST_IMAGES unlabelled images get one class.

    Args:
        predictions: class numbers, [n].
    """
    found = np.asarray(predictions).reshape(-1)
    if len(found) < LEAST_IMAGES:
        return None
    labels, counts = np.unique(found, return_counts=True)
    share = counts.max() / len(found)
    if share <= MOST:
        return None
    return (
        f"{share:.0%} of {len(found)} images get class {labels[counts.argmax()]}: if they are of several "
        "kinds, mean and std, the range or the order of the channels are wrong (labelled images tell which)"
    )
