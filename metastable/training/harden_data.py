"""Batches of `harden`: images stay on the device as bytes, and are augmented there.

A batch is a function of the seed and the number of the update alone, so a resumed run sees the same ones (on
the same kind of device: generators of CPU and CUDA differ).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from metastable.errors import DataError
from metastable.training.harden_config import HardenConfig


class Batches:
    """Training images of one run.

    Args:
        images: uint8 [N, C, H, W]; labels: int64 [N].  Both are moved to the device.
        mirrored: whether images may be mirrored, where the configuration wants it.

    Raises DataError if there are fewer images than a batch needs.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        config: HardenConfig,
        device: torch.device,
        mirrored: bool = True,
    ) -> None:
        if len(images) < config.batch:
            raise DataError(f"{len(images)} training images are too few for batches of {config.batch}")
        self.images, self.labels = images.to(device), labels.to(device)
        self.config, self.device, self._flip = config, device, config.flip and mirrored
        self.rng = torch.Generator(device)
        self._epoch, self._order = -1, torch.empty(0)

    @property
    def per_epoch(self) -> int:
        """Updates that see every image once, but for those that fill no batch."""
        return len(self.labels) // self.config.batch

    def rows(self, step: int) -> Tensor:
        """The images of update `step`: int64 [batch]; every epoch in a new order."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.Generator(self.device).manual_seed(_seed(self.config.seed, epoch, 7919))
            self._order = torch.randperm(len(self.labels), generator=order, device=self.device)
            self._epoch = epoch
        return self._order[index * self.config.batch : (index + 1) * self.config.batch]

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images, float32 [batch, C, H, W] in [0, 1], and their labels.

        `rng` is left where the noise of the update goes on from.
        """
        self.rng.manual_seed(_seed(self.config.seed, step, 1_000_003))
        rows = self.rows(step)
        x = augment(self.images[rows].float() / 255, self.config, self.rng, flip=self._flip)
        return x, self.labels[rows]


def _seed(seed: int, number: int, factor: int) -> int:
    # 32 bits, because PyTorch's CPU generator looks at no more of a seed.
    return (seed * factor * 31 + number * factor + 17) % 2**32


def augment(x: Tensor, config: HardenConfig, rng: torch.Generator, *, flip: bool) -> Tensor:
    """Images [B, C, H, W] mirrored by chance (`flip`), shifted by up to `pad` pixels, with a square cut out.

    rng is a generator of x's device.  The square of side `cutout` may reach over the border; it becomes grey
    (DeVries and Taylor 2017).
    """
    b, _, height, width = x.shape
    if flip:
        mirrored = torch.rand(b, generator=rng, device=x.device) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    if config.pad:
        mode = "reflect" if config.border == "reflect" else "constant"
        padded = F.pad(x, (config.pad,) * 4, mode=mode)
        corners = torch.randint(0, 2 * config.pad + 1, (b, 2), generator=rng, device=x.device)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2p+1, 2p+1, H, W]
        x = windows[torch.arange(b, device=x.device), :, corners[:, 0], corners[:, 1]]
    if config.cutout:
        centre = torch.rand(b, 2, 1, generator=rng, device=x.device)
        rows = torch.arange(height, device=x.device) - (centre[:, 0] * height).floor()
        columns = torch.arange(width, device=x.device) - (centre[:, 1] * width).floor()
        low, high = -(config.cutout // 2), config.cutout - config.cutout // 2
        inside_rows = (rows >= low) & (rows < high)
        inside_columns = (columns >= low) & (columns < high)
        square = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
        x = torch.where(square, torch.full_like(x, 0.5), x)
    return x
