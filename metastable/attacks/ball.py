"""The set that an attack may move in: a ball around each image, cut with [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Ball:
    """Images within `eps` of the originals in the norm, and in [0, 1].

    At eps 0 the image is alone in it, which a control may ask for.
    Raises ValueError for an unknown norm or a negative eps.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm) or not self.eps >= 0:
            raise ValueError(f"a ball needs a norm of {get_args(Norm)} and eps >= 0, not {self}")

    def start(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """A uniform point of the ball around each image, clipped to [0, 1]; rng is a CPU generator."""
        if self.norm == "linf":
            offset = torch.empty(images.shape).uniform_(-self.eps, self.eps, generator=rng)
        else:
            normal = torch.randn(images.shape, generator=rng)
            radius = torch.rand(len(images), generator=rng) ** (1 / images[0].numel())
            offset = self.eps * radius.view(-1, 1, 1, 1) * _unit(normal)
        return self.project(images + offset.to(images), images)

    def project(self, x: Tensor, images: Tensor) -> Tensor:
        """The nearest point of the ball, then of [0, 1], which brings no pixel further from its image."""
        if self.norm == "linf":
            x = torch.min(torch.max(x, images - self.eps), images + self.eps)
        else:
            offset = x - images
            length = torch.linalg.vector_norm(offset.flatten(1), dim=1).view(-1, 1, 1, 1)
            x = images + offset * (self.eps / length.clamp_min(max(self.eps, 1e-30)))
        return x.clamp(0, 1)

    def eight_bit(self, x: Tensor, images: Tensor) -> Tensor:
        """What is left of x in an 8-bit file: multiples of 1/255 that lie in the ball, where there are such.

        In l_2 it is x itself, because rounding leads out of the ball by up to sqrt(D) / 510.
        """
        if self.norm == "l2":
            return x
        slack = 1e-4  # of 255 eps and 255 images, in float32
        low = (255 * (images - self.eps) - slack).ceil()
        high = (255 * (images + self.eps) + slack).floor()
        grid = torch.min(torch.max((255 * x).round(), low), high)
        return torch.where(low <= high, grid, 255 * x).clamp(0, 255) / 255

    def distance(self, x: Tensor, images: Tensor) -> Tensor:
        """How far x is from the images in the norm, [B]."""
        offset = (x - images).flatten(1)
        return offset.abs().amax(1) if self.norm == "linf" else torch.linalg.vector_norm(offset, dim=1)

    def direction(self, gradient: Tensor) -> Tensor:
        """argmax of <v, gradient> over |v| <= 1 (Hill 2021, eq. 8): the sign, or the unit vector."""
        return gradient.sign() if self.norm == "linf" else _unit(gradient)


def _unit(v: Tensor) -> Tensor:
    """v / |v|_2 a row; zero stays zero.  Scaled first: squares of small gradients underflow."""
    v = v / v.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-38)
    length = torch.linalg.vector_norm(v.flatten(1), dim=1).view(-1, 1, 1, 1)
    unit: Tensor = v / length.clamp_min(1e-12)
    return unit
