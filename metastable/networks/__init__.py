"""The networks.  All take float32 images in [0, 1], NCHW; every range change is inside them."""

from typing import TypeVar

import torch
from torch import nn

_Network = TypeVar("_Network", bound=nn.Module)


def channels_last(network: _Network) -> _Network:
    """Lay convolution weights out channels last, which is what CPUs and tensor cores want."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
