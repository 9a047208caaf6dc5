"""What an attack attacks: a function from images [B, C, H, W] in [0, 1] to logits [B, classes].

* the bare classifier: the module itself.  PGD on it is the transfer attack on a defense;
* `straight_through(transform, classifier)`: any transform in front, with the identity for its
  gradient (BPDA, Athalye et al. 2018);
* `Eot(defense, ...)`: the purification defense, averaged over chains with fresh noise in every
  call, with the identity for its gradient or the one through noise injection and every step.

All of them carry a gradient where autograd is on and the images ask for one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metastable import noise
from metastable.attacks.detectors import Detector, ShiftDetector, Statistic
from metastable.attacks.squeezed import surrogate
from metastable.defense import Classifier, as_averaged, begin, mirrored, purify, walk
from metastable.dynamics import ScoreFunction
from metastable.settings import Setting

Target = Callable[[Tensor], Tensor]
Gradient = Literal["bpda", "exact", "held", "smooth"]
Levels = Literal["served", "unflagged", "mixed"]
"""Which noise an `Eot` injects where a setting has two levels: that of the image's flag, as the server does;
that of images which pass the flag; or each for half of the chains, since the server may choose either."""
_Hold = Callable[..., Any]
"""(function, arguments) -> its result, with its inner tensors kept or computed again on the way back."""
CHAINS_AT_ONCE = 64  # bounds memory; outputs do not depend on it
KEPT_STEPS = 5
CHAINS_ON_GPU = 2048  # where a step of a hundred chains takes as long as one of a single chain


@dataclass(frozen=True)
class WhiteBox:
    """All that the attacker knows of a defense: everything but the random numbers of a run.

    Attributes:
        setting: dynamics, noise and what is averaged; `chains` and `delta` are not used.
        classifier: f, images to logits.
        score: the score function of the setting's network.
        detectors: every score norm of the flag, which chooses ADP's noise; an image is flagged by any one of
            them.  Without one every image is.
        shift: the statistic that is known after the answer, where it has a threshold; it chooses no noise.
        smooth: the same score with a derivative that means something, where the score's own is zero almost
            everywhere (metastable.attacks.smooth).
    """

    setting: Setting
    classifier: Classifier
    score: ScoreFunction
    detectors: tuple[Detector, ...] = ()
    smooth: ScoreFunction | None = None
    shift: ShiftDetector | None = None

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """All that an image must pass to go unnoticed."""
        return self.detectors if self.shift is None else (*self.detectors, self.shift)

    @torch.no_grad()
    def flags(self, x: Tensor) -> Tensor:
        """bool [B], where the setting asks for the flag; all true elsewhere."""
        if not self.detectors or not self.setting.dynamics.asks_the_flag:
            return torch.ones(len(x), dtype=torch.bool)
        return torch.stack([detector.flags(x) for detector in self.detectors]).any(0)

    @property
    def averages_mirrors(self) -> bool:
        """Whether f is the mean over an image and its mirror image, a view at a time to be had."""
        return bool(getattr(self.classifier, "flip_average", False))

    @property
    def strongest(self) -> Gradient:
        """The gradient that tells an attacker most: BPDA's only where there is no other.

        Held step sizes break as many images as exact ones in three quarters of the time (docs/results.md).
        """
        if not self.setting.dynamics.differentiable:
            return "bpda" if surrogate(self.setting.dynamics) is None else "smooth"
        if self.smooth is not None:
            return "smooth"
        return "held" if self.setting.dynamics.adapts else "exact"


@dataclass(frozen=True)
class Eot:
    """F_n, the defense averaged over n = `samples` chains of fresh noise, as logits [B, classes].

    Expectation over transformation (Athalye et al. 2018; Hill 2021, eq. 9 and 10): the gradient of a
    loss of the *averaged* output.  Where the setting averages softmax, the logits returned are the
    logarithm of the mean probabilities, so that their cross entropy is that of the mean.

    `bpda` takes the identity for the purification's gradient.  `exact` goes back through the injection,
    every step with its step size and clipping, and the classifier; the flag and the stopping of a
    chain are constants, as they are almost everywhere.  No network's activations are kept for the way
    back, only states, and the steps are computed again (gradient checkpointing; Chen et al. 2016):
    about 2 sqrt(K) states a Langevin or MALADE chain, and for ADP, whose T is small, ten a step.  A
    reconstruction has no exact gradient (NoGradient): attack it by `bpda`.

    `held` is `exact` with ADP's adaptive step sizes held constant.  How they change with x comes of a
    difference of nearly equal scores, and is mostly noise: on the shipped networks gradients of independent
    chains agree better without it, so `held` may be the stronger attack though it is not the true gradient.

    The exact gradient is that of the sampled paths.  The score of a network with LeakyReLU and a
    scalar output (`EnergyNetwork`) is piecewise constant, so it has no gradient and `exact` equals
    `bpda` but for clipping: there, agreement of the two is no evidence of robustness.  `smooth` is `held`
    with `WhiteBox.smooth` for the score's derivative, where there is one, and for squeezed images has the
    derivative of metastable.attacks.squeezed.

    Args:
        seed: of the chains; the n-th call of every equal target draws the same noise.
        stream: separates targets of one seed, such as the attacker's and the verifier's.
        mirror: where f averages an image and its mirror image, classify odd chains mirrored and even ones as
            they are, instead of every chain twice: the same mean for half of the classifier's cost.
        levels: the noise where the setting has two (see `Levels`).
        bf16: run the networks in bfloat16.
    """

    defense: WhiteBox
    samples: int
    gradient: Gradient
    seed: int = 0
    stream: int = 0
    mirror: bool = False
    levels: Levels = "served"
    bf16: bool = False
    _calls: Iterator[int] = field(default_factory=itertools.count, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.samples < 1 or self.gradient not in get_args(Gradient):
            raise ValueError(f"samples must be 1 or more and gradient of {get_args(Gradient)}, not {self}")

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, classes]; consecutive calls see different noise."""
        return self.answers(images)[0]

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] and, of the same chains, the mean purified image, [B, C, H, W]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            found = [self._classified(*piece) for piece in self._pieces(images)]
        outputs, states = (torch.cat(parts) for parts in zip(*found, strict=True))
        if self.bf16:
            outputs, states = outputs.float(), states.float()
        logits = outputs.view(len(images), self.samples, -1)
        mean = states.view(len(images), self.samples, *images.shape[1:]).mean(dim=1)
        average = as_averaged(logits, self.defense.setting.average).mean(dim=1)
        if self.defense.setting.average == "softmax":
            average = average.clamp_min(1e-30).log()
        return average, mean

    @torch.no_grad()
    def purified(self, images: Tensor) -> Tensor:
        """The mean purified image over chains, f_theta(x) of ADP: [B, C, H, W]."""
        states = torch.cat([self._purify(*piece[:3]) for piece in self._pieces(images)])
        return states.view(len(images), self.samples, *images.shape[1:]).mean(dim=1)

    def _pieces(self, images: Tensor) -> Iterator[tuple[Tensor, Sequence[noise.ChainKey], Tensor, _Hold]]:
        """Chains of all images, as many at a time as fit: states, keys, flags, and how to hold a graph."""
        words = np.random.SeedSequence([self.seed, self.stream, next(self._calls)]).generate_state(4)
        key = int.from_bytes(words.tobytes(), "little")
        x = images.repeat_interleave(self.samples, 0)
        flagged = self._flagged(images)
        # With one piece its graph is needed at once: nothing is won by computing it twice.
        at_once = CHAINS_ON_GPU if x.is_cuda else CHAINS_AT_ONCE
        hold = _recompute if len(x) > at_once else _keep
        for start in range(0, len(x), at_once):
            rows = slice(start, start + at_once)
            keys = [(key, chain) for chain in range(len(x))[rows]]
            yield x[rows], keys, flagged[rows], hold

    def _flagged(self, images: Tensor) -> Tensor:
        """Which chains get a flagged image's noise: bool [B * samples]."""
        if self.levels == "served":
            with torch.autocast(images.device.type, enabled=False):  # as the server has it
                return self.defense.flags(images).repeat_interleave(self.samples)
        # Pairs of chains, because `mirror` tells even ones from odd.
        pairs = (
            torch.arange(self.samples) // 2 % 2 == 1 if self.levels == "mixed" else torch.zeros(self.samples)
        )
        return pairs.bool().repeat(len(images))

    def _classifier(self, state: Tensor, keys: Sequence[noise.ChainKey]) -> Tensor:
        apart = self.mirror and self.defense.averages_mirrors
        if not (apart or self.defense.setting.mirror):
            return self.defense.classifier(state)
        view = mirrored(state, [chain % self.samples % 2 == 1 for _, chain in keys])
        if not apart:
            return self.defense.classifier(view)
        logits: Tensor = self.defense.classifier.single_view(view)  # type: ignore[attr-defined]
        return logits

    def _classified(
        self, x: Tensor, keys: Sequence[noise.ChainKey], flagged: Tensor, hold: _Hold
    ) -> tuple[Tensor, Tensor]:
        """The outputs and the states of a piece's chains."""
        if self.gradient == "bpda":
            with torch.no_grad():
                purified = self._purify(x, keys, flagged)
            state = _identity_gradient(purified, x)
            return hold(self._classifier, state, keys), state

        def through(start: Tensor) -> tuple[Tensor, Tensor]:
            state = self._purify(start, keys, flagged)
            return self._classifier(state, keys), state

        found: tuple[Tensor, Tensor] = hold(through, x)
        return found

    def _purify(self, x: Tensor, keys: Sequence[noise.ChainKey], flagged: Tensor) -> Tensor:
        setting = self.defense.setting
        if self.gradient == "smooth" and (soft := surrogate(setting.dynamics)) is not None:
            with torch.no_grad():
                value = purify(x, keys, setting, self.defense.score, flagged)[0]
            return _identity_gradient(value, soft(x)) if x.requires_grad else value
        if not (torch.is_grad_enabled() and x.requires_grad):
            return purify(x, keys, setting, self.defense.score, flagged)[0]
        dynamics, flags, hold = setting.dynamics, flagged.tolist(), self.gradient in ("held", "smooth")
        x = begin(x, keys, dynamics, flags)
        if setting.steps <= KEPT_STEPS or not dynamics.differentiable:
            # The activations of a few evaluations fit; of many, only states are kept.
            return walk(x, keys, dynamics, self._network, flags, hold=hold)[0]
        # Many steps: segments of sqrt(K) that are computed again, one by one, on the way back; in long ones
        # each evaluation once more.
        span = math.ceil(setting.steps**0.5)
        score = self._network if span <= KEPT_STEPS else self._score

        def segment(state: Tensor, first: int, steps: int) -> Tensor:
            return walk(state, keys, dynamics, score, flags, first=first, steps=steps, hold=hold)[0]

        for first in range(0, setting.steps, span):
            x = _recompute(segment, x, first, min(span, setting.steps - first))
        return x

    def _score(self, x: Tensor) -> Tensor:
        score: Tensor = _recompute(self._network, x)
        return score

    @property
    def _network(self) -> ScoreFunction:
        smooth = self.defense.smooth if self.gradient == "smooth" else None
        return smooth or self.defense.score


def seeded(target: Target, seed: int) -> Target:
    """The target with its noise started anew from the seed; a target without noise is itself."""
    return dataclasses.replace(target, seed=seed) if isinstance(target, Eot) else target


def fresh(target: Target, seed: int, samples: int) -> Target:
    """A judge of what an attack with this seed found: as many chains, with noise that the attack never saw.

    A target without noise is its own judge.
    """
    return (
        dataclasses.replace(target, seed=seed, stream=1, samples=samples)
        if isinstance(target, Eot)
        else target
    )


def straight_through(transform: Callable[[Tensor], Tensor], classifier: Classifier) -> Target:
    """classifier(transform(x)) with the identity for the transform's gradient (BPDA)."""

    def attacked(x: Tensor) -> Tensor:
        with torch.no_grad():
            transformed = transform(x)
        return classifier(_identity_gradient(transformed, x))

    return attacked


def _identity_gradient(value: Tensor, x: Tensor) -> Tensor:
    """`value`, to the bit, with the gradient of x."""
    return value.detach() + (x - x.detach())


def _recompute(function: Callable[..., Any], *args: object) -> Any:
    """function(*args), its inner tensors computed again on the way back.  It must be deterministic."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def _keep(function: Callable[..., Any], *args: object) -> Any:
    return function(*args)
