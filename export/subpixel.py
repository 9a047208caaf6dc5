"""Transposed convolutions as 3x3 or 1x1 convolutions and a pixel shuffle: the same numbers.

For runtimes that have no transposed convolution of a type: TensorRT-RTX of bfloat16 (its builder gives up),
and OpenVINO of 8 bits (no faster than of 32).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metastable.networks.energy import EnergyNetwork, framed, lost, spread, unframed


class SubpixelScore(nn.Module):
    """`EnergyNetwork.score` with the way back as 3x3 convolutions and pixel shuffles."""

    def __init__(self, network: EnergyNetwork) -> None:
        super().__init__()
        self.network = network
        for index in range(1, len(network.hidden)):
            weight: Tensor = network.hidden[index].weight  # type: ignore[assignment]
            self.register_buffer(f"back{index}", subpixel_kernel(weight))

    def forward(self, x: Tensor) -> Tensor:
        """The score of x [B, C, H, W] in [0, 1]."""
        slope, outputs = self.network.slope, []
        height, width = x.shape[-2:]
        h = 2 * framed(x, self.network.last.weight, 0.5) - 1
        for conv in self.network.hidden:
            h = F.leaky_relu(conv(h), slope)
            outputs.append(h)
        g = spread(-2.0 * self.network.last.weight, outputs[-1])
        for index in range(len(outputs) - 1, 0, -1):
            g = torch.where(outputs[index] > 0, g, slope * g)
            below, right = lost(outputs[index - 1], g)
            g = F.conv2d(F.pad(g, (0, right, 0, below)), getattr(self, f"back{index}"), padding=1)
            rows, columns = outputs[index - 1].shape[-2:]
            g = F.pixel_shuffle(g, 2)[..., :rows, :columns]
        g = torch.where(outputs[0] > 0, g, slope * g)
        first: Tensor = self.network.hidden[0].weight  # type: ignore[assignment]
        return unframed(F.conv2d(g, first.transpose(0, 1).flip(2, 3), padding=1), height, width)


def subpixel_kernel(weight: Tensor) -> Tensor:
    """The 3x3 kernel [4 I, O, 3, 3] that, before a pixel shuffle, is the transpose of a 4x4/2 convolution.

    Row 2 y + p of the result (p is 0 or 1) reads rows y + d of the input, d from -1 to 1, through row
    p + 1 - 2 d of the 4x4 kernel `weight` [O, I, 4, 4] where there is one; columns alike.
    """
    outputs, inputs = weight.shape[:2]
    kernel = weight.new_zeros(inputs, 2, 2, outputs, 3, 3)
    taps = [(p, d, p + 1 - 2 * d) for p in (0, 1) for d in (-1, 0, 1) if 0 <= p + 1 - 2 * d < 4]
    for p, dy, ky in taps:
        for q, dx, kx in taps:
            kernel[:, p, q, :, dy + 1, dx + 1] = weight[:, :, ky, kx].T
    return kernel.view(4 * inputs, outputs, 3, 3)


class SubpixelDoubling(nn.Sequential):
    """A 2x2/2 transposed convolution as a 1x1 convolution to four times the channels, shuffled."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        inputs, outputs = layer.in_channels, layer.out_channels
        narrow = nn.Conv2d(inputs, 4 * outputs, 1)
        assert layer.bias is not None
        narrow.weight = nn.Parameter(
            layer.weight.detach().permute(1, 2, 3, 0).reshape(4 * outputs, inputs, 1, 1), requires_grad=False
        )
        narrow.bias = nn.Parameter(layer.bias.detach().repeat_interleave(4), requires_grad=False)
        super().__init__(narrow, nn.PixelShuffle(2))


def without_transposes(module: nn.Module) -> nn.Module:
    """A copy in which every 2x2/2 `ConvTranspose2d` is a `SubpixelDoubling`; others stay as they are."""
    made = copy.deepcopy(module)
    for parent in list(made.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ConvTranspose2d) and child.kernel_size == child.stride == (2, 2):
                setattr(parent, name, SubpixelDoubling(child))
    return made
