"""Images of any height and width for networks that halve them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def on_multiples(network: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """network(x) [B, C', H, W] of images x [B, C, H, W] for a network that takes multiples of a number only.

    The lower and right edges are mirrored until H and W are multiples, and cut off again; a side that is too
    short to be mirrored so far repeats its last row or column.  Where nothing is missing, nothing is done.
    """
    height, width = x.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if not (below or right):
        return network(x)
    if right:
        x = F.pad(x, (0, right, 0, 0), mode=_mode(right, width))
    if below:
        x = F.pad(x, (0, 0, 0, below), mode=_mode(below, height))
    return network(x)[..., :height, :width]


def _mode(more: int, side: int) -> str:
    return "reflect" if more < side else "replicate"
