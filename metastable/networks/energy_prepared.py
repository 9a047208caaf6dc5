"""The score of an EnergyNetwork with everything prepared that does not depend on the image.

`EnergyNetwork.score` turns, doubles and casts weights anew for every call, which is half of its operations
when a step is short.  Here weights are cast once, the range change lies in the first layer, and the
derivative of an activation is one operation.  With LeakyReLU the answer in float32 is the same to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metastable.networks.energy import EnergyNetwork, beyond, framed, lost, spread, unframed

SCALE = 2.0**-8
"""What a float16 score is multiplied by on its way: the gradient of U is some thousand times what the range
and the precision of half numbers are made for."""


class PreparedScore(nn.Module):
    """The score of a network as it was when this was made.

    Args:
        dtype: of weights and activations: float32, bfloat16 or float16.
    """

    def __init__(self, network: EnergyNetwork, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.slope, self.dtype, self.piecewise = network.slope, dtype, network.piecewise
        self.wall = network.wall
        self.scale = SCALE if dtype == torch.float16 else 1.0
        for name, value in self._prepared(network).items():
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            self.register_buffer(name, value.to(dtype, copy=True).contiguous(memory_format=layout))

    @torch.no_grad()
    def refresh(self, network: EnergyNetwork) -> None:
        """Take the weights that the network has now, in place: a recorded graph goes on with them."""
        own = dict(self.named_buffers())
        for name, value in self._prepared(network).items():
            own[name].copy_(value)

    def _prepared(self, network: EnergyNetwork) -> dict[str, Tensor]:
        convolutions = [layer for layer in network.hidden if isinstance(layer, nn.Conv2d)]
        weights = [layer.weight.detach() for layer in convolutions]
        biases = [layer.bias.detach() for layer in convolutions if layer.bias is not None]
        named = {f"weight{i}": weight for i, weight in enumerate(weights)}
        named |= {f"bias{i}": bias for i, bias in enumerate(biases)}
        # Images come as x - 1/2, and the network wants 2 x - 1; powers of two change no digit.
        named["weight0"] = 2 * weights[0]
        named["first"] = weights[0].transpose(0, 1).flip(2, 3)
        named["last"] = network.last.weight.detach() * (-2.0 * self.scale)
        return named

    def forward(self, centred: Tensor) -> Tensor:
        """`scale` times -dU/dx in `dtype`, [B, C, H, W], for centred = x - 1/2 with x in [0, 1] units."""
        own = dict(self.named_buffers())
        height, width = centred.shape[-2:]
        h, kept = framed(centred.to(self.dtype), own["last"], 0.0), []
        for i in range(4):
            z = F.conv2d(h, own[f"weight{i}"], own[f"bias{i}"], 1 if i == 0 else 2, 1)
            h = F.leaky_relu_(z, self.slope) if self.piecewise else F.silu(z)
            kept.append(z)  # of a LeakyReLU, its output, which has the same signs
        g = spread(own["last"], h)
        for i in (3, 2, 1):
            g = self._before(g, kept[i])
            g = F.conv_transpose2d(g, own[f"weight{i}"], None, 2, 1, lost(kept[i - 1], g))
        score = F.conv2d(self._before(g, kept[0]), own["first"], padding=1)
        score = unframed(score, height, width)
        if not self.wall:
            return score
        # In the precision of the images, which are a little more than half from the middle there.
        return score - (beyond(centred, self.wall, -0.5) * (self.scale / self.wall)).to(self.dtype)

    def score(self, x: Tensor) -> Tensor:
        """-dU/dx for x in [0, 1], float32 [B, C, H, W]."""
        out: Tensor = self(x.float() - 0.5).float() / self.scale
        return out

    def _before(self, g: Tensor, kept: Tensor) -> Tensor:
        """g times the derivative of the activation where `kept` is."""
        back = torch.ops.aten
        made: Tensor
        if self.piecewise:
            made = back.leaky_relu_backward(g, kept, self.slope, True)
        else:
            made = back.silu_backward(g, kept)
        return made
