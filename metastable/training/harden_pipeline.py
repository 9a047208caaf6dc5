"""What `harden` trains: noise, purifier and classifier as one differentiable network.

One evaluation of the purifier, and no step size that adapts, so that the gradient is that of a plain network
(denoised smoothing, Salman et al. 2020):

    v = clip(x + sigma z),   p = clip(v + s(v)),   logits = f(p).

Unrolled (`unroll` n from 2 on) it is n Langevin-like steps with noise in each: x <- clip(x + a s(x) + tau z).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainingWalk:
    """sigma of one step; or n = `unroll` steps of share a = `step` with noise tau = `noise` in each."""

    sigma: float = 0.1
    unroll: int = 1
    step: float = 1.0
    noise: float = 0.05


class Pipeline(nn.Module):
    """Noise, purifier, classifier.

    Args:
        classifier: images [B, C, H, W] in [0, 1] to logits; its flip average, if it has one, is turned off.
        purifier: s(x) of images, or None: then only noise is added.
        moves: the parts that learn, of "purifier" and "classifier".  The others get no gradient and stay
            in eval mode, so that they are equal to the bit after training.
    """

    def __init__(
        self,
        classifier: nn.Module,
        purifier: nn.Module | None,
        dynamics: TrainingWalk,
        moves: tuple[str, ...] = ("purifier", "classifier"),
    ) -> None:
        super().__init__()
        if getattr(classifier, "flip_average", False):
            classifier.flip_average = False  # type: ignore[assignment]
        self.classifier = classifier
        self.purifier = purifier
        self.dynamics = dynamics
        self.moving = moves
        for name, part in self.parts().items():
            if name not in moves:
                part.requires_grad_(False)
        self._whole: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = self._plain
        self.learners = [p for p in self.parameters() if p.requires_grad]
        self.attacked()

    def parts(self) -> dict[str, nn.Module]:
        """The networks by name: "classifier", and "purifier" where there is one."""
        found = {"classifier": self.classifier}
        return found if self.purifier is None else {"purifier": self.purifier, **found}

    def purify(self, x: Tensor, z: Tensor) -> Tensor:
        """p of images [B, C, H, W] in [0, 1]; z is standard normal, [n, B, C, H, W]."""
        d = self.dynamics
        if d.unroll == 1:
            v = (x + d.sigma * z[0]).clamp(0, 1) if d.sigma else x
            return v if self.purifier is None else (v + self.purifier(v)).clamp(0, 1)
        assert self.purifier is not None
        for noise in z.unbind(0):
            x = (x + d.step * self.purifier(x) + d.noise * noise).clamp(0, 1)
        return x

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] in float32 and purified images, of arguments as in `purify`."""
        return self._whole(x, z)

    def _plain(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        p = self.purify(x, z)
        return self.classifier(p).float(), p

    @property
    def is_compiled(self) -> bool:
        return self._whole != self._plain

    def compiled(self, wanted: bool) -> None:
        """Whether passes go through torch.compile."""
        self._whole = torch.compile(self._plain, dynamic=False) if wanted else self._plain

    def attacked(self) -> None:
        """Batch norm by its running statistics, everywhere."""
        self.eval()

    def learning(self) -> None:
        """Batch norm by the statistics of the batch, in the parts that move."""
        for name, part in self.parts().items():
            part.train(name in self.moving)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, weights need no gradient and batch norm keeps its statistics: for an attacker."""
        self.attacked()
        for p in self.learners:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in self.learners:
                p.requires_grad_(True)

    @torch.no_grad()
    def clean_logits(self, x: Tensor) -> Tensor:
        """What the classifier alone says of images as they are: [B, classes]."""
        logits: Tensor = self.classifier(x)
        return logits.float()
