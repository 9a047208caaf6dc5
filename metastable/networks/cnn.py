"""The convolutional MNIST classifier of MALADE (Srinivasan et al. 2019, Table 5)."""

from __future__ import annotations

from torch import Tensor, nn


class Cnn(nn.Module):
    """conv 3x3 -> 128, conv 5x5/2 -> 64, linear 128, linear to logits; ReLU between, no padding.

    Args:
        channels, size: of the images.
        widths: outputs of the two convolutions and of the first linear layer.

    The default has 1.2 M parameters and 0.05 GFLOP an image of 1x28x28.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        size: int = 28,
        widths: tuple[int, int, int] = (128, 64, 128),
    ) -> None:
        super().__init__()
        a, b, c = widths
        side = (size - 2 - 5) // 2 + 1  # after both convolutions
        self.conv1 = nn.Conv2d(channels, a, 3)
        self.conv2 = nn.Conv2d(a, b, 5, 2)
        self.hidden = nn.Linear(b * side * side, c)
        self.head = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images x [B, C, H, W] in [0, 1]."""
        h = self.conv2(self.conv1(x).relu()).relu()
        out: Tensor = self.head(self.hidden(h.flatten(1)).relu())
        return out
