"""Checks of a hardening run on held-out images: the best weights, and a guard against sudden loss.

Adversarial training with few attack steps can collapse within an epoch ("catastrophic overfitting"): robust
accuracy falls to nothing while the loss looks better than ever (Wong et al. 2020, who stop then).
Here the last good weights come back, the learning rate is halved and the attack gets one more step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FALL = 0.20
"""So large a fall of robust accuracy from one check to the next means that training has collapsed."""
PATIENCE = 3
"""After so many restorations the run ends with its best weights."""
MOST_STEPS = 10
"""The guard makes the attack no longer than this."""

Verdict = Literal["good", "best", "restore", "abort"]


@dataclass
class Guard:
    """What the checks have shown so far.

    Attributes:
        rate: factor of the learning rate, halved by every restoration.
        steps: of the attack.
        failures: restorations so far.
        last: robust accuracy at the last good check, nan before the first.
        best: greatest mean of two checks in a row, -1 before the first.
    """

    steps: int
    rate: float = 1.0
    failures: int = 0
    last: float = math.nan
    best: float = -1.0

    def judge(self, robust: float, *, finite: bool) -> Verdict:
        """What a check with this robust accuracy, in [0, 1], means.

        `restore` asks for the weights of the last good check, with the changed `rate` and `steps`; `best` for
        keeping the present ones.  `finite`: whether the losses since the last check were.
        """
        if not finite or (not math.isnan(self.last) and self.last - robust >= FALL):
            self.failures += 1
            self.rate /= 2
            self.steps = max(self.steps, min(self.steps + 1, MOST_STEPS))
            return "abort" if self.failures > PATIENCE else "restore"
        smooth = robust if math.isnan(self.last) else (robust + self.last) / 2
        self.last = robust
        if smooth > self.best:
            self.best = smooth
            return "best"
        return "good"

    def state(self) -> Tensor:
        """float64 [5], for a checkpoint."""
        values = (self.steps, self.rate, self.failures, self.last, self.best)
        return torch.tensor(values, dtype=torch.float64)

    @staticmethod
    def of(state: Tensor) -> Guard:
        steps, rate, failures, last, best = state.tolist()
        return Guard(int(steps), rate, int(failures), last, best)
