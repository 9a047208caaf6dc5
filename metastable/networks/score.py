"""A score network: a small U-Net without normalisation, blind to the noise level.

It returns s(x) = D(x) - x, where D is the denoiser: by Tweedie's formula (Vincent 2011, eq. 9)
D(x) - x = sigma^2 grad log p_sigma(x) at the noise level sigma that x shows.  This is the score
up to the positive factor sigma^2, which the adaptive step of ADP divides out again (Yoon, Hwang
and Lee 2021, eq. 18), and it goes to zero on clean images, so its norm tells attacked ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from metastable.networks.padding import on_multiples


class _Residual(nn.Module):
    """x + conv(relu(conv(x))); the second convolution starts at zero, so blocks start as identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.conv1(x).relu())
        return out


def stack(channels: int, blocks: int) -> nn.Sequential:
    """So many residual blocks."""
    return nn.Sequential(*(_Residual(channels) for _ in range(blocks)))


class ScoreNetwork(nn.Module):
    """U-Net of residual blocks with additive skips (the layout of DRUNet, Zhang et al. 2021).

    Args:
        channels: image channels.
        widths: channels at full, half and quarter size.
        blocks: residual blocks on the way down (and again up) at full and half size; twice as
            many at quarter size.

    The default has 1.3 M parameters and 0.32 GFLOP an image on 3x32x32; widths (128, 256, 512)
    with two blocks have 32 M, the size of the papers' NCSNv2.
    """

    def __init__(
        self, channels: int = 3, widths: tuple[int, int, int] = (32, 80, 160), blocks: int = 1
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.head = nn.Conv2d(channels, a, 3, padding=1)
        self.down1, self.half1 = stack(a, blocks), nn.Conv2d(a, b, 2, 2)
        self.down2, self.half2 = stack(b, blocks), nn.Conv2d(b, c, 2, 2)
        self.middle = stack(c, 2 * blocks)
        self.double2, self.up2 = nn.ConvTranspose2d(c, b, 2, 2), stack(b, blocks)
        self.double1, self.up1 = nn.ConvTranspose2d(b, a, 2, 2), stack(a, blocks)
        self.tail = nn.Conv2d(a, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """s(x) = D(x) - x, [B, C, H, W] in image units, of any H and W."""
        return on_multiples(self._moved, x, 4)

    def _moved(self, x: Tensor) -> Tensor:
        h1 = self.down1(self.head(x - 0.5))
        h2 = self.down2(self.half1(h1))
        h = self.middle(self.half2(h2))
        h = self.up2(self.double2(h) + h2)
        h = self.up1(self.double1(h) + h1)
        out: Tensor = self.tail(h)
        return out

    def score(self, x: Tensor) -> Tensor:
        """The same as `forward`: every purifying network answers to this name."""
        out: Tensor = self(x)
        return out

    def denoise(self, x: Tensor) -> Tensor:
        """D(x) = x + s(x): the least-squares estimate of the clean image."""
        return x + self.score(x)
