"""Pure step functions of the purification dynamics, each headed by its equation.

Every state is a float tensor [B, C, H, W] in [0, 1] units, one chain a row.  A score function
maps such a batch to one of the same shape; noise comes in as an argument.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ScoreFunction = Callable[[Tensor], Tensor]
"""[B, C, H, W] -> [B, C, H, W]: grad log p, up to a positive factor where the dynamics allow it."""


def score_norm(s: Tensor) -> Tensor:
    """Euclidean norm of each image's score: [B, C, H, W] -> [B]."""
    norms: Tensor = torch.linalg.vector_norm(s.flatten(1), dim=1)
    return norms
