"""The fast gradient sign method (Goodfellow, Shlens and Szegedy 2015): one full step from the image."""

from __future__ import annotations

from dataclasses import dataclass, field

from metastable.attacks.pgd import Pgd


@dataclass(frozen=True, kw_only=True)
class Fgsm(Pgd):
    """x + eps sign(gradient) or, in l_2, x + eps gradient / |gradient|."""

    step: float = field(init=False)
    steps: int = field(default=1, init=False)
    random_start: bool = field(default=False, init=False)
    restarts: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", self.eps)
        super().__post_init__()
