"""How many images make a batch, by how many pixels they have.

What a batch of 32 small images gains in speed, one large image has by itself; and what 1 024 chains of small
images hold in memory is little, of large ones it is more than a machine has.
"""

from __future__ import annotations

import torch

CPU_PIXELS = 2**18
"""Of the largest batch on a processor: 256 images of 32 x 32, 5 of 224 x 224.

A chain of 32 x 32 costs the same in any batch from 16 on, one of 224 x 224 from 1 on (measured on 2 cores).
"""
GPU_PIXELS = 2**21
"""The same on a GPU: 2 048 images of 32 x 32, 41 of 224 x 224."""


def at_most(count: int, shape: tuple[int, ...], pixels: int) -> int:
    """`count` images [..., H, W], or as many as have `pixels` pixels in all; at least one."""
    return max(1, min(count, pixels // (shape[-2] * shape[-1])))


def most_pixels(device: torch.device) -> int:
    """Of the largest batch on a device."""
    return CPU_PIXELS if device.type == "cpu" else GPU_PIXELS
