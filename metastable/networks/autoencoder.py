"""The denoising autoencoder of MALADE (Srinivasan et al. 2019, Table 6).

Trained to denoise images with Gaussian noise of variance v, r(x) - x = v grad log p_v(x) (eq. 9).
Trained with the supervised loss of eq. 11 as well, r(x) - x estimates v times the gradient of
log p(x | y), averaged over the labels y that x may have (eq. 12).
"""

from __future__ import annotations

from torch import Tensor, nn

from metastable.networks.padding import on_multiples


class Autoencoder(nn.Module):
    """conv 5x5/2 -> 10, conv 5x5/2 -> 25, transposed 9x9/2 -> 10, 1x1/2 -> 1, conv 5x5; tanh after all.

    Padding keeps sizes to halves and doubles.  26 832 parameters for one channel.

    Args:
        channels: of the images.
        variance: v, of the noise that the network was trained to remove, in squared [0, 1] units.
    """

    def __init__(self, channels: int = 1, variance: float = 0.15) -> None:
        super().__init__()
        if not variance > 0:
            raise ValueError(f"the variance of the noise must be positive, not {variance}")
        self.variance = variance
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 10, 5, 2, padding=2),
            nn.Tanh(),
            nn.Conv2d(10, 25, 5, 2, padding=2),
            nn.Tanh(),
            nn.ConvTranspose2d(25, 10, 9, 2, padding=4, output_padding=1),
            nn.Tanh(),
            nn.ConvTranspose2d(10, channels, 1, 2, output_padding=1),
            nn.Tanh(),
            nn.Conv2d(channels, channels, 5, padding=2),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """r(x): the reconstruction of images x [B, C, H, W] in [0, 1] units, same shape, in (-1, 1)."""
        return on_multiples(self.layers, x, 4)

    def score(self, x: Tensor) -> Tensor:
        """(r(x) - x) / v, the gradient that eq. 12 estimates, per [0, 1] unit: [B, C, H, W]."""
        out: Tensor = (self(x) - x) / self.variance
        return out
