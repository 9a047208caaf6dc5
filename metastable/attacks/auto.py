"""AutoAttack in its randomised version (Croce and Hein 2020), by the Adversarial Library's APGD.

A control: others wrote it and tuned nothing on this project.  The library is optional:
`pip install --no-deps adv-lib==0.2.8`.  Of its files only APGD's is loaded, because the package around it
imports plotting and vision packages that APGD does not need.

The toolbox of `metastable.attacks.art` has an APGD too.  It asks for gradient and loss by separate calls,
which costs more and on a noisy target compares losses of different noise, it halves its steps by another
rule than the paper's, and it returns the last point instead of the best.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metastable.attacks.ascent import Attacked, Best, Misclassify, judged
from metastable.attacks.ball import Ball, Norm
from metastable.attacks.target import Eot, Target, fresh
from metastable.errors import MissingPackage

PACKAGE = "adv-lib==0.2.8"


@dataclass(frozen=True, kw_only=True)
class AutoRand:
    """APGD on the cross entropy, then, for what withstood, on the difference of logits ratio; EOT 20.

    One call of an `Eot` target is the mean of all `samples` chains, so the library's own `eot_iter` is 1:
    the gradient is that of the loss of the mean, as everywhere in this project, where AutoAttack takes the
    mean of the losses' gradients, and loss, best point and steps are judged by all chains, where the
    library looks at the last draw alone.  Any other target is asked once a step.

    The library returns the last point that looked wrong.  Here the point with the largest margin along
    the way counts, and `check` fresh chains, not the ones that chose it, decide whether it is a success.

    Attributes:
        norm, eps: the ball.
        steps: of each of the two, AutoAttack's 100.  The step sizes are APGD's own.
        samples: chains of a gradient, the randomised version's 20.
        check: chains that judge each of the two results, of an `Eot` target.

    Raises MissingPackage, when called, without the library.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    steps: int = 100
    samples: int = 20
    check: int = 150

    def __post_init__(self) -> None:
        if min(self.steps, self.samples, self.check) < 1:
            raise ValueError(f"steps, samples and check must be 1 or more, not {self}")

    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """See metastable.attacks.ascent.Attack; there is no bar."""
        images, ball = images.detach(), Ball(self.norm, self.eps)
        apgd = _library().apgd
        asked, judge = target, fresh(target, seed, self.check)
        if isinstance(target, Eot):
            asked = dataclasses.replace(target, seed=seed, samples=self.samples)
        with torch.no_grad():
            classes = asked(images[:1]).shape[1]
        best = Best(images)
        rows = torch.arange(len(images), device=images.device)
        with torch.random.fork_rng():  # the library draws its starts from the global generator
            torch.manual_seed(seed)
            for loss in ("ce", "dlr")[: 1 if classes < 3 else 2]:  # the ratio needs a third logit
                seen = _Seen(asked, images[rows], labels[rows], ball)
                apgd(
                    seen,
                    images[rows],
                    labels[rows],
                    eps=self.eps,
                    norm=math.inf if self.norm == "linf" else 2,
                    n_iter=self.steps,
                    loss_function=loss,
                )
                found = judged(judge, seen.best.result.images, images[rows], labels[rows], Misclassify())
                best.update(rows, found.images, found.strength)
                rows = (~best.result.success).nonzero().squeeze(1)
                if not len(rows):
                    break
        return best.result


class _Seen(nn.Module):
    """The target as the library calls it, and the strongest of the points that it was asked about."""

    def __init__(self, target: Target, images: Tensor, labels: Tensor, ball: Ball) -> None:
        super().__init__()
        self._target, self._images, self._labels, self._ball = (target,), images, labels, ball
        self.best = Best(images)

    def forward(self, x: Tensor) -> Tensor:
        logits = self._target[0](x)
        with torch.no_grad():
            strength = Misclassify().strength(logits, x, self._labels)
            rows = torch.arange(len(x), device=x.device)
            self.best.update(rows, self._ball.project(x, self._images), strength)
        return logits


def _library() -> Any:
    """The library's APGD file, without the package around it."""
    package = importlib.util.find_spec("adv_lib")
    if package is None or not package.submodule_search_locations:
        raise MissingPackage(f"this attack is the Adversarial Library's: pip install --no-deps {PACKAGE}")
    path = Path(package.submodule_search_locations[0]) / "attacks" / "auto_pgd.py"
    spec = importlib.util.spec_from_file_location("metastable_auto_pgd", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
