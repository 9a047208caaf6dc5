"""What the user says of a graph, and what the adaptation makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SIDE = 1024
"""The longest height or width of an image."""


@dataclass(frozen=True)
class Wishes:
    """What the user says of a graph; None where it is to be found out.

    Attributes:
        output: the name of the output, or of any value inside, that holds the logits (or probabilities).
        layout: where the channels of the graph's input stand.
        order: of the channels that the graph takes.
        range: the values that the graph takes before mean and std, (0, 1) or (0, 255) most often.
        size: height and width, where the graph leaves them open.
    """

    output: str | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    order: Literal["rgb", "bgr"] | None = None
    range: tuple[float, float] | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Adapted:
    """A classifier in the one form that the rest of the project takes.

    Attributes:
        graph: one input float32 [batch, channels, height, width], planes in the order RGB, which is given
            (x - mean) / std of images x in [0, 1]; one output, logits float32 [batch, classes]; its weights
            inside; any number of images.
        channels, height, width, classes: its sizes.
        mean, std: by channel, what the range of the graph's values asks for: 0 and 1, or 0 and 1/255.  They
            are not folded into the graph, so that others can be put in their place: with a mean m and a std s
            in the range that the graph takes, those are mean + m * std and s * std.
        changes: a plain sentence for each thing that was changed or has to be known.
        undecided: what only the user or labelled images can tell, of `order`, `range`, `normalization`
            (mean and std), `size` and `layout`.
    """

    graph: bytes
    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    changes: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
