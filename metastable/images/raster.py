"""Decoded samples of an image, and how they become the planes of another size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from metastable.images.fit import STRETCH, Fit

Box = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image."""


@dataclass(frozen=True)
class Raster:
    """An image that is decoded and not yet scaled.

    Attributes:
        samples: [H, W, 1 or 3] from 0 to `white`.
        alpha: [H, W] from 0 to 255, opaque; None where all is.
        notes: short sentences on what was changed.
    """

    samples: np.ndarray
    white: int
    alpha: np.ndarray | None
    notes: tuple[str, ...]

    def cut(self, box: Box) -> Raster:
        rows, columns = slice(box[0], box[0] + box[2]), slice(box[1], box[1] + box[3])
        alpha = None if self.alpha is None else self.alpha[rows, columns]
        return replace(self, samples=self.samples[rows, columns], alpha=alpha)

    def plane(self, channel: int, size: tuple[int, int], fit: Fit) -> np.ndarray:
        """One channel, float32 [height, width] in [0, 1]: one at a time keeps the peak memory low.

        What the fits of classifiers do to 8-bit samples stays in 8 bits, as in their own preprocessing.
        """
        levels = self.samples[..., channel]
        if levels.dtype == np.uint8 and self.alpha is None and fit != STRETCH:
            return fit.applied(levels, size).astype(np.float32) / np.float32(self.white)
        plane = levels.astype(np.float32) / np.float32(self.white)
        if self.alpha is not None:
            alpha = self.alpha.astype(np.float32) / np.float32(255)
            plane = np.clip(plane * alpha + (1 - alpha), 0, 1)
        if plane.shape == size:
            return plane
        return fit.applied(plane, size).clip(0, 1)
