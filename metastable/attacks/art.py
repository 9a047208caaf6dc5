"""Attacks of the Adversarial Robustness Toolbox (Nicolae et al. 2018), called like our own.

They look for the *nearest* wrong image, so what they find may lie outside the ball: it is projected
into it, and success is judged after that.  Gradients and decisions are the target's, noise and all.

The toolbox is optional: `pip install adversarial-robustness-toolbox==1.20.1`.
"""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from metastable.attacks.ascent import Attacked, Best, Misclassify
from metastable.attacks.ball import Ball, Norm
from metastable.attacks.target import Target, seeded
from metastable.errors import MissingPackage

Name = Literal["carlini-wagner", "ead", "boundary"]


@dataclass(frozen=True, kw_only=True)
class Art:
    """One of the toolbox's attacks, and our ball around what it finds.

    `carlini-wagner` is Carlini and Wagner's (2017) of the ball's norm, `ead` the elastic-net attack
    (Chen et al. 2018), `boundary` the boundary attack (Brendel et al. 2018), which sees labels only.

    Attributes:
        norm, eps: the ball.
        steps: the attack's greatest number of iterations.
        targeted: `labels` are the classes to reach.
        confidence: margin in logits asked for; `boundary` knows none.

    Raises MissingPackage, when called, without the toolbox.
    """

    name: Name
    norm: Norm = "linf"
    eps: float = 8 / 255
    steps: int = 50
    targeted: bool = False
    confidence: float = 0.0

    def __call__(
        self, target: Target, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> Attacked:
        """See metastable.attacks.ascent.Attack."""
        target, ball = seeded(target, seed), Ball(self.norm, self.eps)
        with torch.no_grad():
            classes = target(images[:1]).shape[1]
        wanted = np.eye(classes, dtype=np.float32)[labels.cpu().numpy()]
        given = {"x_adv_init": self._starts(target, images, labels, seed)} if self.name == "boundary" else {}
        with seeded_numpy(seed):
            attack = self._attack(classifier(target, images, classes), progress)
            found = attack.generate(images.detach().cpu().numpy(), y=wanted, **given)
        x = ball.project(torch.from_numpy(found).to(images), images)
        best = Best(images)
        with torch.no_grad():
            strength = Misclassify(self.targeted).strength(target(x), x, labels)
        best.update(torch.arange(len(x), device=x.device), x, strength)
        return best.result

    @torch.no_grad()
    def _starts(self, target: Target, images: Tensor, labels: Tensor, seed: int) -> np.ndarray:
        """Where the boundary attack starts: noise, or an image of the batch, with a label that will do.

        The toolbox would draw noise from the operating system.  Where nothing will do it still does.
        """
        rng = torch.Generator().manual_seed(seed)
        noise = torch.rand((32, *images.shape[1:]), generator=rng).to(images)
        pool = torch.cat([noise, images])
        found = target(pool).argmax(1)
        fits = (found == labels[:, None]) if self.targeted else (found != labels[:, None])  # [B, pool]
        starts: np.ndarray = pool[fits.int().argmax(1)].cpu().numpy()
        return starts

    def _attack(self, estimator: Any, progress: bool) -> Any:
        evasion = toolbox("art.attacks.evasion")
        shared = {"targeted": self.targeted, "verbose": progress}
        batch = {"batch_size": 32, "max_iter": self.steps, "confidence": self.confidence}
        # Searches for the constant begin higher and are coarser than by default: fewer wasted queries.
        search = {"binary_search_steps": 5, "initial_const": 0.1}
        if self.name == "boundary":
            return _boundary(evasion.BoundaryAttack)(estimator, max_iter=self.steps, **shared)
        if self.name == "ead":
            return evasion.ElasticNet(estimator, **search, **batch, **shared)
        if self.norm == "l2":
            return evasion.CarliniL2Method(estimator, **search, **batch, **shared)
        return evasion.CarliniLInfMethod(
            estimator, initial_const=0.1, const_factor=4.0, decrease_factor=0.7, **batch, **shared
        )


class _Drawn(np.random.RandomState):
    """A generator that is seeded by the global one where nothing else is."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002


def _boundary(toolboxs: Any) -> Any:
    """The toolbox's boundary attack, its starts drawn by the seed and not by the operating system."""

    class Boundary(toolboxs):  # type: ignore[misc]
        def _init_sample(self, *given: Any, **named: Any) -> Any:
            with mock.patch.object(np.random, "RandomState", _Drawn):
                return super()._init_sample(*given, **named)

    return Boundary


def classifier(target: Target, images: Tensor, classes: int) -> Any:
    """The toolbox's view of a target: an art.estimators.classification.PyTorchClassifier."""
    estimators = toolbox("art.estimators.classification")
    return estimators.PyTorchClassifier(
        model=_Module(target),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if images.device.type == "cpu" else "gpu",
    )


class _Module(nn.Module):
    """A target as a module; its weights are not registered, so that nothing moves or retrains them."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = (target,)

    def forward(self, x: Tensor) -> Tensor:
        return self._target[0](x.float())  # the toolbox sends float64 at times


def toolbox(module: str) -> Any:
    """A module of the toolbox; MissingPackage without it."""
    try:
        with warnings.catch_warnings():  # of packages that the toolbox could use and does not find
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "art":
            raise
        raise MissingPackage(
            "this attack is the Adversarial Robustness Toolbox's: "
            "pip install adversarial-robustness-toolbox==1.20.1"
        ) from None


@contextmanager
def seeded_numpy(seed: int) -> Iterator[None]:
    """The toolbox draws from global generators: seed them, and give their states back after."""
    before, others = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
        random.setstate(others)
