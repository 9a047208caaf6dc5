"""The attacks on a purification defense by name: what is attacked, with which gradient and options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from metastable.attacks.art import Art
from metastable.attacks.ascent import Attack
from metastable.attacks.ball import Norm
from metastable.attacks.bpda_eot import BpdaEot
from metastable.attacks.exact import Exact, Held
from metastable.attacks.fgsm import Fgsm
from metastable.attacks.joint import Joint
from metastable.attacks.mim import Mim
from metastable.attacks.pgd import Pgd
from metastable.attacks.salt_pepper import SaltPepper
from metastable.attacks.score_aware import ScoreAware
from metastable.attacks.spsa import Spsa
from metastable.attacks.target import Eot, Target, WhiteBox

Mode = Literal["bare", "none", "bpda", "exact", "held"]
"""How an attack comes by its gradient: the bare classifier's, from no gradient at all, or through the
defense: by BPDA, exactly, or with step sizes held."""


@dataclass(frozen=True)
class Plan:
    """An attack ready to be called: attack(target, images, labels, seed=...)."""

    attack: Attack
    target: Target
    mode: Mode


@dataclass(frozen=True)
class Options:
    """What is asked of an attack; None leaves an attack its own value.

    Attributes:
        step: length of a step; None is eps / 4, 2/255 for 8/255 (for `mim` eps / steps).
        samples, check: H_adv and H_def.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    step: float | None = None
    steps: int | None = None
    samples: int = 15
    check: int = 150


_Make = Callable[..., Attack]
_ENTRIES: dict[str, tuple[Mode, _Make, tuple[str, ...]]] = {
    # name: (gradient, attack, the options that it takes besides norm and eps)
    "transfer": ("bare", Pgd, ("step", "steps")),
    "fgsm": ("exact", Fgsm, ()),
    "mim": ("exact", Mim, ("step", "steps")),
    "bpda-eot": ("bpda", BpdaEot, ("step", "steps", "samples", "check")),
    "exact": ("exact", Exact, ("step", "steps", "samples", "check")),
    "held": ("held", Held, ("step", "steps", "samples", "check")),
    "joint-score": ("bpda", partial(Joint, pull="score"), ("step", "steps", "samples", "check")),
    "joint-full": ("bpda", partial(Joint, pull="full"), ("step", "steps", "samples", "check")),
    "score-aware": ("exact", ScoreAware, ("step", "steps", "samples", "check", "detector")),
    "salt-pepper": ("none", SaltPepper, ("steps",)),
    "spsa": ("none", Spsa, ("step", "steps")),
    "carlini-wagner": ("exact", partial(Art, name="carlini-wagner"), ("steps",)),
    "ead": ("exact", partial(Art, name="ead"), ("steps",)),
    "boundary": ("none", partial(Art, name="boundary"), ("steps",)),
}
NAMES = tuple(_ENTRIES)


def plan(name: str, box: WhiteBox, options: Options) -> Plan:
    """The named attack on a defense.

    Raises ValueError for a name not in NAMES, and for `score-aware` on a defense without a detector.
    """
    if name not in _ENTRIES:
        raise ValueError(f"there is no attack {name!r}: choose from {NAMES}")
    mode, make, wanted = _ENTRIES[name]
    if "detector" in wanted and box.detector is None:
        raise ValueError(f"{name} needs the anomaly flag's detector")
    steps = options.steps
    step = options.step or options.eps / ((steps or Mim.steps) if name == "mim" else 4)
    known: dict[str, Any] = {
        "step": step,
        "samples": options.samples,
        "check": options.check,
        "detector": box.detector,
        **({} if steps is None else {"steps": steps}),
    }
    attack = make(norm=options.norm, eps=options.eps, **{key: known[key] for key in wanted if key in known})
    if mode == "bare":
        return Plan(attack, box.classifier, mode)
    # Without a gradient any would do; BPDA's builds no graph through the purification.
    target = Eot(box, samples=options.samples, gradient="bpda" if mode == "none" else mode)
    return Plan(attack, target, mode)
