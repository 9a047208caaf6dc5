"""A gradient for scores that have none: a smooth activation in the backward pass only.

The score of an energy with LeakyReLU depends on x through the signs of its activations alone.  It is constant
between kinks, so its exact derivative is zero almost everywhere and says nothing of how purification follows
the image.  Here the value stays that of the network, and the derivative of each step function, slope to 1, is
that of a sigmoid of the same place, as wide as a share of the layer's activations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from metastable.dynamics import ScoreFunction
from metastable.networks.energy import EnergyNetwork, beyond, framed, lost, spread, unframed

WIDTH = 0.1
"""Chosen on training images of the shipped energies: over sign steps of 1 to 13 of 255, what this derivative
says of the score's change correlates with the change itself by 0.69 to 0.96 (0.03, 0.3: about as well)."""


def smooth_backward(network: EnergyNetwork, width: float = WIDTH) -> ScoreFunction:
    """-grad U as `network.score` has it, with the derivative of a smooth network of the same weights.

    A network that is smooth itself has its own derivative.

    Args:
        width: of the sigmoids, in standard deviations of what goes into each layer's activation.
    """

    if not network.piecewise:
        return network.score

    def score(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return network.score(x)
        h, masks = 2 * framed(x, network.last.weight, 0.5) - 1, []
        for conv in network.hidden:
            z = conv(h)
            masks.append(_mask(z, network.slope, width))
            h = F.leaky_relu(z, network.slope)
        g = spread(-2.0 * network.last.weight, h)
        for index in range(len(network.hidden) - 1, 0, -1):
            g = g * masks[index]
            weight: Tensor = network.hidden[index].weight  # type: ignore[assignment]
            g = F.conv_transpose2d(g, weight, None, 2, 1, lost(masks[index - 1], g))
        first: Tensor = network.hidden[0].weight  # type: ignore[assignment]
        made = F.conv2d(g * masks[0], first.transpose(0, 1).flip(2, 3), padding=1)
        made = unframed(made, *x.shape[-2:])
        return made - beyond(x, network.wall) / network.wall if network.wall else made

    return score


def _mask(z: Tensor, slope: float, width: float) -> Tensor:
    """1 where z is positive and slope elsewhere, with the derivative of a sigmoid between the two."""
    with torch.no_grad():
        hard = torch.where(z > 0, 1.0, slope).to(z.dtype)
        scale = (width * z.std()).clamp_min(1e-12)
    soft = (1 - slope) * torch.sigmoid(z / scale)
    return hard + (soft - soft.detach())
