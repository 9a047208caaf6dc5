"""An energy by construction: half the squared distance to what a small U-Net makes of the image.

U(x) = |r(x)|^2 / (2 sigma^2) with r(x) = f(x) - x in image units: images [B, C, H, W] in [0, 1] -> energies
[B]; density p(x) proportional to exp(-U(x)).  A network that denoises has r(x) = -(x - clean), so U is the
squared distance to the images over that of noise sigma, and its density that of images with this noise
(Salimans and Ho 2021, "Should EBMs model the energy or the score?", eq. 6, train such energies by score
matching).  Unlike a scalar head, it has the inductive bias of a denoiser.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MULTIPLE = 4
"""Of height and width: the unshuffle halves them, and so does the level below it."""


class DenoisingEnergy(nn.Module):
    """U-Net of two levels behind a 2 x 2 pixel unshuffle, smooth (SiLU), without normalisation.

    Args:
        channels: image channels C.
        widths: channels at half and quarter size.
        blocks: residual blocks on the way down and again on the way up at half size; twice as many at
            quarter size.
        sigma: noise of the images whose density is meant, in (0, 1].

    Two sigma beyond [0, 1] a wall begins: U grows by |x - clip(x, -2 sigma, 1 + 2 sigma)|^2 / (2 sigma^2).
    Images with that noise hardly lie there, so the network knows nothing of it, and long chains would creep
    outwards.

    The default has 0.49 M parameters.  Its score costs two passes: forward, and back to the image.
    """

    def __init__(
        self, channels: int = 3, widths: tuple[int, int] = (48, 96), blocks: int = 1, sigma: float = 0.08
    ) -> None:
        super().__init__()
        if not 0 < sigma <= 1:
            raise ValueError(f"sigma must lie in (0, 1], not {sigma}")
        self.sigma = sigma
        a, b = widths
        self.head = nn.Conv2d(4 * channels, a, 3, padding=1)
        self.down = nn.ModuleList(_Block(a) for _ in range(blocks))
        self.shrink = nn.Conv2d(a, b, 2, 2)
        self.middle = nn.ModuleList(_Block(b) for _ in range(2 * blocks))
        self.grow = nn.ConvTranspose2d(b, a, 2, 2)
        self.up = nn.ModuleList(_Block(a) for _ in range(blocks))
        self.tail = nn.Conv2d(a, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Energy U(x), [B]."""
        away = self._there(_framed(x), []).square().sum((1, 2, 3)) + self._beyond(x).square().sum((1, 2, 3))
        return away / (2 * self.sigma**2)

    def residual(self, x: Tensor) -> Tensor:
        """r(x), [B, C, H, W] in image units."""
        return self._there(_framed(x), [])[..., : x.shape[-2], : x.shape[-1]]

    def score(self, x: Tensor) -> Tensor:
        """-dU/dx for x in [0, 1]: [B, C, H, W].  A forward graph, no autograd."""
        kept: list[Tensor] = []
        r = self._there(_framed(x), kept)
        # -dU/dr, and from there back through every layer to the image
        g = _back(self.tail, F.pixel_unshuffle(r, 2) * (-1.0 / self.sigma**2))
        for block in reversed(_of(self.up)):
            g = block.back(g, kept)
        skip = g
        g = F.conv2d(g, self.grow.weight, None, 2)
        for block in reversed(_of(self.middle)):
            g = block.back(g, kept)
        g = F.conv_transpose2d(g, self.shrink.weight, None, 2) + skip
        for block in reversed(_of(self.down)):
            g = block.back(g, kept)
        inside = F.pixel_shuffle(_back(self.head, g), 2)[..., : x.shape[-2], : x.shape[-1]]
        return inside - self._beyond(x) / self.sigma**2

    def denoise(self, x: Tensor) -> Tensor:
        """x + sigma^2 score(x): the least-squares estimate of the clean image (Tweedie's formula)."""
        return x + self.sigma**2 * self.score(x)

    def _beyond(self, x: Tensor) -> Tensor:
        """How far x is behind the wall."""
        return x - x.clamp(-2 * self.sigma, 1 + 2 * self.sigma)

    def _there(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        """r(x) of centred images of whole multiples; `kept` gets what the blocks need on the way back."""
        skip = self.head(F.pixel_unshuffle(x, 2))
        for block in _of(self.down):
            skip = block.there(skip, kept)
        h = self.shrink(skip)
        for block in _of(self.middle):
            h = block.there(h, kept)
        h = self.grow(h) + skip
        for block in _of(self.up):
            h = block.there(h, kept)
        return F.pixel_shuffle(self.tail(h), 2)


class _Block(nn.Module):
    """x + conv(silu(conv(x))); the second convolution starts at zero, so blocks start as identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def there(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        kept.append(z := self.conv1(x))
        out: Tensor = x + self.conv2(F.silu(z))
        return out

    def back(self, g: Tensor, kept: list[Tensor]) -> Tensor:
        """The gradient before the block, from that behind it; takes the last of `kept`."""
        z = kept.pop()
        share = torch.sigmoid(z)
        return g + _back(self.conv1, _back(self.conv2, g) * (share * (1 + z * (1 - share))))


def _of(blocks: nn.ModuleList) -> list[_Block]:
    return [block for block in blocks if isinstance(block, _Block)]


def _back(conv: nn.Conv2d, g: Tensor) -> Tensor:
    """The gradient before a 3x3 convolution: one with the kernel turned around, faster than the transpose."""
    return F.conv2d(g, conv.weight.transpose(0, 1).flip(2, 3), padding=1)


def _framed(x: Tensor) -> Tensor:
    """x - 1/2 in a frame of zeros, below and to the right, that makes the sides multiples of four.

    A constant leaves the score the exact gradient, which a mirrored edge would not.
    """
    height, width = x.shape[-2:]
    below, right = -height % _MULTIPLE, -width % _MULTIPLE
    centred = x - 0.5
    return F.pad(centred, (0, right, 0, below)) if below or right else centred
