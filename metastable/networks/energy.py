"""The lightweight energy network of Hill, Mitchell and Zhu 2021, and its score.

U: images [B, C, H, W] in [0, 1] -> energies [B]; density p(x) proportional to exp(-U(x)).
Inside, images are in [-1, 1] as in the paper.  The network returns U itself.  (The paper's code
returns (tau^2 / 2) U; weights of that code must be divided by 5e-5 in the last layer.)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["leaky", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


class EnergyNetwork(nn.Module):
    """conv 3x3 C->n, three convs 4x4/2 n->2n->4n->8n, one conv to a scalar; LeakyReLU 0.05.

    Args:
        channels: image channels C.
        size: image height and width; 32 and 28 are tested.
        features: n; the paper uses 32 (690 K parameters on 3x32x32).
        activation: "leaky", or "silu": the score of the first is constant between kinks, so nobody can
            differentiate it; that of the second is smooth.
        wall: standard deviation of a Gaussian wall around the images, or 0 for none: U grows by
            |x - clip(x, 0, 1)|^2 / (2 wall^2).  Data with noise of that size lie no further out, and chains
            cannot run away along a network that goes on linearly there.

    On larger images the last convolution has several places, and U is their sum: that of all parts of the
    trained size, at steps of 8 pixels.  Smaller ones are framed below and to the right with gray.
    """

    slope = 0.05

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        features: int = 32,
        activation: Activation = "leaky",
        wall: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}: use {' or '.join(ACTIVATIONS)}")
        if not 0 <= wall <= 1:
            raise ValueError("wall must lie in [0, 1]")
        self.activation, self.wall = activation, wall
        n, final = features, size // 8
        self.hidden = nn.ModuleList(
            [
                nn.Conv2d(channels, n, 3, padding=1),
                nn.Conv2d(n, 2 * n, 4, 2, padding=1),
                nn.Conv2d(2 * n, 4 * n, 4, 2, padding=1),
                nn.Conv2d(4 * n, 8 * n, 4, 2, padding=1),
            ]
        )
        self.last = nn.Conv2d(8 * n, 1, final)

    def forward(self, x: Tensor) -> Tensor:
        """Energy U(x), [B]."""
        h = 2 * framed(x, self.last.weight, 0.5) - 1
        for conv in self.hidden:
            h = self._activated(conv(h))
        places: Tensor = self.last(h)
        energy = places.flatten() if places.shape[2:] == (1, 1) else places.sum((1, 2, 3))
        return energy + 0.5 * beyond(x, self.wall).square().sum((1, 2, 3)) if self.wall else energy

    def score(self, x: Tensor) -> Tensor:
        """-dU/dx for x in [0, 1]: [B, C, H, W].  A forward graph, no autograd.

        Run the convolutions, keep what the derivatives of the activations depend on, and go back through
        transposed convolutions.  The last layer is linear, so it contributes its weights and needs no
        forward pass.
        """
        height, width = x.shape[-2:]
        h = 2 * framed(x, self.last.weight, 0.5) - 1
        kept: list[Tensor] = []
        for conv in self.hidden:
            z = conv(h)
            h = self._activated(z)
            # The output of a LeakyReLU has the sign of what went into it, and the two can so be fused.
            kept.append(h if self.piecewise else z)
        # -dU/dh; the factor -2 is that of the chain rule through 2 x - 1, here where it costs least
        g = spread(-2.0 * self.last.weight, kept[-1])  # [B, 8n, H/8, W/8]
        for index in range(len(self.hidden) - 1, 0, -1):
            g = self._before(g, kept[index])
            weight: Tensor = self.hidden[index].weight  # type: ignore[assignment]
            g = F.conv_transpose2d(g, weight, None, 2, 1, lost(kept[index - 1], g))
        g = self._before(g, kept[0])
        # At stride 1 the transpose is a convolution with the kernel turned around, which is faster.
        first: Tensor = self.hidden[0].weight  # type: ignore[assignment]
        score = unframed(F.conv2d(g, first.transpose(0, 1).flip(2, 3), padding=1), height, width)
        return score - beyond(x, self.wall) / self.wall if self.wall else score

    @property
    def piecewise(self) -> bool:
        """Whether U is linear between kinks, where the score has no derivative that says anything."""
        return self.activation == "leaky"

    def _activated(self, z: Tensor) -> Tensor:
        return F.leaky_relu(z, self.slope) if self.piecewise else F.silu(z)

    def _before(self, g: Tensor, kept: Tensor) -> Tensor:
        """The gradient before an activation, from that behind it."""
        if self.piecewise:
            return torch.where(kept > 0, g, self.slope * g)
        share = torch.sigmoid(kept)
        return g * (share * (1 + kept * (1 - share)))


def beyond(x: Tensor, wall: float, low: float = 0.0) -> Tensor:
    """How far x is outside [low, low + 1], in walls."""
    return (x - x.clamp(low, low + 1)) / wall


def framed(x: Tensor, last: Tensor, gray: float) -> Tensor:
    """Images [B, C, H, W] large enough for the weights [1, 8n, k, k] of the last layer: 8 k pixels a side.

    A constant around them leaves the score the exact gradient, which a mirrored edge would not.
    """
    least, (height, width) = 8 * last.shape[-1], x.shape[-2:]
    if min(height, width) >= least:
        return x
    return F.pad(x, (0, max(0, least - width), 0, max(0, least - height)), value=gray)


def unframed(score: Tensor, height: int, width: int) -> Tensor:
    """What of a score belongs to the image of this size that was framed."""
    return score if score.shape[-2:] == (height, width) else score[..., :height, :width]


def spread(last: Tensor, h: Tensor) -> Tensor:
    """The gradient [B, 8n, H, W] in h of the sum of a convolution of h with `last` [1, 8n, k, k]."""
    places = [have - last.shape[-1] + 1 for have in h.shape[-2:]]
    if places != [1, 1]:
        last = F.conv_transpose2d(last.new_ones(1, 1, *places), last)
    return last.expand(h.shape[0], -1, -1, -1)


def lost(halved: Tensor, g: Tensor) -> tuple[int, int]:
    """Rows and columns that are missing when g is doubled: an odd size loses one when it is halved."""
    return halved.shape[-2] - 2 * g.shape[-2], halved.shape[-1] - 2 * g.shape[-1]
