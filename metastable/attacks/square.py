"""Square, random search by queries (Andriushchenko et al. 2020), of the Adversarial Robustness Toolbox.

It sees outputs only, so it looks where a gradient says nothing.  The toolbox is optional, as in
`metastable.attacks.art`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metastable.attacks.art import classifier, seeded_numpy, toolbox
from metastable.attacks.ascent import Attacked, Best, Misclassify, judged
from metastable.attacks.ball import Ball, Norm
from metastable.attacks.target import Eot, Target, fresh


@dataclass(frozen=True, kw_only=True)
class Square:
    """The toolbox's random search with settings for a target whose answers are noisy.

    As it is, the toolbox stops at the first query with a wrong label, and its loss looks at the two highest
    logits, which are not the true class's and its best rival's once an image is wrong.  Here:

    * the loss is the margin of the true class over its best rival;
    * a candidate is judged by one query of `samples` fresh chains, and what it must beat by the mean over
      up to `patience` queries of its own, so that a lucky query does not last;
    * an image leaves only when that mean, over all `patience` queries, is wrong by `confidence`;
    * there are no restarts, which would drop what was found.

    What it found is projected into the ball, and `check` fresh chains decide whether it is a success.

    Attributes:
        norm, eps: the ball.  In l_2 the toolbox's patterns need images of at least 10 pixels, and version
            1.20.1 divides a new window by the length that the paper multiplies it with: it finds far less
            than PGD there, and that it finds nothing says little.
        steps: candidates, max_iter of the toolbox; an image is queried at most 2 (steps + 1) times.
        samples: chains that answer a query, of an `Eot` target; another one is asked once.
        check: chains that judge the result, of an `Eot` target.
        patience, confidence: see above; confidence is in logits.
        share: of the pixels that the first squares cover (AutoAttack's 0.8).

    Raises MissingPackage, when called, without the toolbox, and ValueError for images that are too small.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    steps: int = 500
    samples: int = 8
    check: int = 150
    patience: int = 6
    confidence: float = 2.0
    share: float = 0.8

    def __post_init__(self) -> None:
        if min(self.steps, self.samples, self.check, self.patience) < 1:
            raise ValueError(f"steps, samples, check and patience must be 1 or more, not {self}")

    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """See metastable.attacks.ascent.Attack."""
        if min(images.shape[2:]) < (smallest := 5 if self.norm == "linf" else 10):
            raise ValueError(f"square needs images of at least {smallest} pixels a side")
        if self.eps == 0:  # the toolbox takes no such ball; nothing is to be found in it
            return Best(images).result
        ball, asked = Ball(self.norm, self.eps), target
        if isinstance(target, Eot):
            asked = dataclasses.replace(target, seed=seed, samples=self.samples)
        # Its l_2 patterns may cancel; the candidate, which then has no numbers, is refused below.
        quiet = np.errstate(divide="ignore", invalid="ignore")
        with torch.no_grad(), seeded_numpy(seed), quiet:
            classes = asked(images[:1]).shape[1]
            queries = _Queries(asked, images, labels, classes, self.patience, self.confidence)
            attack = toolbox("art.attacks.evasion").SquareAttack(
                classifier(queries, images, classes),
                norm="inf" if self.norm == "linf" else 2,
                eps=self.eps,
                max_iter=self.steps,
                p_init=self.share,
                nb_restarts=1,
                batch_size=len(images),
                adv_criterion=queries.leaves,
                loss=queries.loss,
                verbose=progress,
            )
            found = attack.generate(
                images.detach().cpu().numpy(), y=np.eye(classes, dtype=np.float32)[labels.cpu().numpy()]
            )
        x = ball.project(torch.from_numpy(found).to(images), images)
        return judged(fresh(target, seed, self.check), x, images, labels, Misclassify())


class _Queries:
    """What the toolbox is told: mean logits of the images that it holds, and losses.

    In every turn the toolbox asks for the logits of what it holds, then which images leave, then for the loss
    of those that stay, and then for the loss of a candidate for each of these.
    """

    def __init__(
        self, target: Target, images: Tensor, labels: Tensor, classes: int, patience: int, confidence: float
    ) -> None:
        self._target, self._labels = target, labels
        self._patience, self._confidence = patience, confidence
        self._held = images.clone()
        self._sum = images.new_zeros((len(images), classes))
        self._count = images.new_zeros((len(images), 1))
        self._stay = torch.ones_like(labels, dtype=torch.bool)

    def __call__(self, x: Tensor) -> Tensor:
        """Mean logits of the held images x [B, C, H, W]: one query more of each, up to `patience`."""
        new = (x != self._held).flatten(1).any(1)
        self._sum[new], self._count[new] = 0, 0
        self._held = x.clone()
        if len(ask := (self._count < self._patience).all(1).nonzero().squeeze(1)):
            self._sum[ask] += self._target(x[ask])
            self._count[ask] += 1
        return self._sum / self._count

    def leaves(self, predicted: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """bool [B]: where the held images, all of which are asked about, are wrong for certain."""
        margin = Misclassify().strength(self._sum / self._count, self._held, self._labels)
        self._stay = (margin <= self._confidence) | (self._count < self._patience).squeeze(1)
        gone: np.ndarray = (~self._stay).cpu().numpy()
        return gone

    def loss(self, x: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Margins [n] of the images that stay, known for those that are held and asked for candidates."""
        images, labels = torch.from_numpy(x).to(self._held), self._labels[self._stay]
        held = torch.equal(images, self._held[self._stay])
        logits = (self._sum / self._count)[self._stay] if held else self._target(images.nan_to_num())
        margin = -Misclassify().strength(logits, images, labels)
        margin[~images.flatten(1).isfinite().all(1)] = torch.inf
        numbers: np.ndarray = margin.cpu().numpy()
        return numbers
