"""Classifiers f: images [B, 3, 32, 32] in [0, 1] -> logits [B, classes]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "silu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """(x - mean) / std by channel, kept with the weights so that no caller can forget it."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class _ConvGroup(nn.Sequential):
    """conv, halve, norm, GELU, conv, norm, GELU: one stage of WhitenedNet."""

    def __init__(self, inputs: int, outputs: int) -> None:
        def norm() -> nn.BatchNorm2d:
            # Momentum 0.4: running statistics follow a training of a few hundred updates.
            layer = nn.BatchNorm2d(outputs, momentum=0.4)
            layer.weight.requires_grad_(False)  # GELU keeps no scale: one knob fewer to train
            return layer

        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            norm(),
            nn.GELU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm(),
            nn.GELU(),
        )
        for layer in self:
            if isinstance(layer, nn.Conv2d):  # start as an identity on the first channels
                nn.init.dirac_(layer.weight[: layer.in_channels])


class MirrorAveraged(nn.Module, ABC):
    """A classifier that may average its logits over an image and its mirror; subclasses are one view."""

    flip_average: bool

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes]; in eval mode, with `flip_average`, the mean over x and its mirror image."""
        if self.training or not self.flip_average:
            return self.single_view(x)
        return 0.5 * (self.single_view(x) + self.single_view(x.flip(3)))

    @abstractmethod
    def single_view(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of x [B, C, H, W] alone, without its mirror image."""


class WhitenedNet(MirrorAveraged):
    """Small fast CIFAR classifier (2.0 M parameters, 0.24 GFLOP an image).

    A frozen 2x2 whitening convolution, three conv groups (64, 256, 256), a linear head: the
    network of Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024).
    """

    def __init__(
        self,
        classes: int = 10,
        widths: tuple[int, int, int] = (64, 256, 256),
        flip_average: bool = True,
    ) -> None:
        super().__init__()
        self.flip_average = flip_average
        self.normalize = Normalize(CIFAR10_MEAN, CIFAR10_STD)
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.stem = nn.GELU()
        self.groups = nn.Sequential(*map(_ConvGroup, (24, *widths[:2]), widths))
        self.pool = nn.MaxPool2d(3)
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def single_view(self, x: Tensor) -> Tensor:
        h = self.stem(self.whiten(self.normalize(x)))  # [B, 24, 31, 31]
        h = self.pool(self.groups(h)).flatten(1)  # [B, 256]
        out: Tensor = self.head(h) / 9.0
        return out

    @torch.no_grad()
    def fit_whitening(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the first layer to plus and minus the whitened 2x2 patch eigenvectors of `images`."""
        patches = self.normalize(images).unfold(2, 2, 1).unfold(3, 2, 1)  # [N, 3, 31, 31, 2, 2]
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        values, vectors = torch.linalg.eigh((flat.T @ flat).double() / len(flat))
        filters = (vectors / torch.sqrt(values + eps)).T.reshape(12, 3, 2, 2).flip(0).float()
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]


class PreActivationBlock(nn.Module):
    """Residual block of two 3x3 convolutions, each behind norm and activation (He et al. 2016b)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        h = self.conv2(self.activation(self.norm2(self.conv1(h))))
        out: Tensor = h + skip
        return out


class WideResNet(MirrorAveraged):
    """WRN-depth-width (Zagoruyko and Komodakis 2016); 28-10 is the classifier of the papers.

    Args:
        depth: 6 n + 4, for n blocks a stage; ValueError for another.
        width: factor of the 16, 32 and 64 channels.
        activation: "relu", or "silu", whose smoothness helps adversarial training (Xie et al. 2020,
            "Smooth adversarial training"); ValueError for another.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        classes: int = 10,
        flip_average: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 (for instance 28), not {depth}")
        if activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {get_args(Activation)}, not {activation!r}")
        self.flip_average = flip_average
        self.activation = ACTIVATIONS[activation]
        self.normalize = Normalize(CIFAR10_MEAN, CIFAR10_STD)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage, channels in enumerate((16 * width, 32 * width, 64 * width)):
            for index in range((depth - 4) // 6):
                blocks.append(
                    PreActivationBlock(inputs, channels, 2 if stage and not index else 1, activation)
                )
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)

    def single_view(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm(self.blocks(self.stem(self.normalize(x)))))
        out: Tensor = self.head(h.mean(dim=(2, 3)))
        return out
