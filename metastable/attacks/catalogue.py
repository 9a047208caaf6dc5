"""The attacks on a purification defense by name: what is attacked, with which gradient and options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from metastable.attacks.aimed import Aimed
from metastable.attacks.annealed import Annealed
from metastable.attacks.art import Art
from metastable.attacks.ascent import Attack, Loss
from metastable.attacks.auto import AutoRand
from metastable.attacks.ball import Norm
from metastable.attacks.bpda_eot import BpdaEot
from metastable.attacks.evasion import Evasion
from metastable.attacks.exact import Exact, Held
from metastable.attacks.fgsm import Fgsm
from metastable.attacks.joint import Joint
from metastable.attacks.mim import Mim
from metastable.attacks.pgd import Pgd
from metastable.attacks.r_pgd import RPgd
from metastable.attacks.salt_pepper import SaltPepper
from metastable.attacks.score_aware import ScoreAware
from metastable.attacks.spsa import Spsa
from metastable.attacks.square import Square
from metastable.attacks.target import Eot, Levels, Target, WhiteBox

Mode = Literal["bare", "none", "bpda", "exact", "held", "smooth"]
"""How an attack comes by its gradient: the bare classifier's, from no gradient at all, or through the
defense: by BPDA, exactly, with step sizes held, or with a smooth derivative of a score that has none."""
SUITE = ("transfer", "annealed-ce", "annealed-margin", "joint", "square")
"""What a defense is judged by: its worst case by image over these (metastable.evaluation.suite)."""


@dataclass(frozen=True)
class Plan:
    """An attack ready to be called: attack(target, images, labels, seed=...).

    Attributes:
        samples: EOT samples, chains of the defense that every logit of the target is a mean of.
        check: chains that confirm a break (H_def); None where the attack confirms none.
    """

    attack: Attack
    target: Target
    mode: Mode
    samples: int
    check: int | None


@dataclass(frozen=True)
class Options:
    """What is asked of an attack; None leaves an attack its own value.

    Attributes:
        step: length of a step; None is eps / 4, 2/255 for 8/255 (for `mim` eps / steps).
        samples, check: H_adv and H_def; None is 16 for the annealed attacks, and Hill's 15 for the others.
        restarts, loss: of the attacks that climb (metastable.attacks.pgd); None for an attack's own restarts.
        levels: the noise that the annealed attacks expect (metastable.attacks.target.Levels).
        bf16: run the networks in bfloat16 where the annealed attacks look for a way.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    step: float | None = None
    steps: int | None = None
    samples: int | None = None
    check: int = 150
    restarts: int | None = None
    loss: Loss = "ce"
    levels: Levels = "served"
    bf16: bool = False


class Entry(NamedTuple):
    """An attack of the catalogue: its gradient (None for the strongest that the defense has), its class, the
    options that it takes besides norm and eps, whether its target is a mean over `Options.samples` chains or
    one chain, and a number of chains of its own instead of those."""

    mode: Mode | None
    make: Callable[..., Attack]
    wanted: tuple[str, ...]
    eot: bool = True
    chains: int | None = None


_CLIMB = ("step", "steps", "restarts", "loss")
_VERIFIED = (*_CLIMB, "samples", "check")
_ANNEALED = ("steps", "samples", "restarts", "gradient", "levels", "bf16")
_AWARE = ("step", "steps", "restarts", "samples", "check", "detector")


def _aimed(**options: Any) -> Attack:
    """High confidence, so that the class outlasts the walk below the threshold (Carlini and Wagner 2017)."""
    return Aimed(attack=ScoreAware(targeted=True, confidence=5.0, **options))


ATTACKS: dict[str, Entry] = {
    "transfer": Entry("bare", Pgd, _CLIMB, eot=False),
    "fgsm": Entry("exact", Fgsm, ("loss",)),
    "pgd": Entry("exact", Pgd, _CLIMB, eot=False),
    "r+pgd": Entry("exact", RPgd, _CLIMB, eot=False),
    "mim": Entry("exact", Mim, _CLIMB),
    "bpda": Entry("bpda", Pgd, _CLIMB, eot=False),
    "bpda-eot": Entry("bpda", BpdaEot, _VERIFIED),
    "exact": Entry("exact", Exact, _VERIFIED),
    "held": Entry("held", Held, _VERIFIED),
    "joint-score": Entry("bpda", partial(Joint, pull="score"), _VERIFIED),
    "joint-full": Entry("bpda", partial(Joint, pull="full"), _VERIFIED),
    "score-aware": Entry("exact", ScoreAware, _AWARE),
    "annealed-ce": Entry(None, Annealed, _ANNEALED),
    "annealed-margin": Entry(
        None, partial(Annealed, loss="margin", random_start=True, restarts=2), _ANNEALED
    ),
    "joint": Entry(None, Evasion, ("steps", "samples", "restarts", "gradient", "bf16", "statistics")),
    "score-aware-targeted": Entry("exact", _aimed, _AWARE),
    "salt-pepper": Entry("none", SaltPepper, ("steps",)),
    "spsa": Entry("none", Spsa, _CLIMB),
    "carlini-wagner": Entry("exact", partial(Art, name="carlini-wagner"), ("steps",)),
    "ead": Entry("exact", partial(Art, name="ead"), ("steps",)),
    "square": Entry("none", Square, ("steps", "samples", "check"), chains=Square.samples),
    "autoattack-rand": Entry(None, AutoRand, ("steps", "samples", "check"), chains=AutoRand.samples),
    "boundary": Entry("none", partial(Art, name="boundary"), ("steps",)),
}
"""The attacks by name; a new one is one file and one row."""


def plan(name: str, box: WhiteBox, options: Options) -> Plan:
    """The named attack on a defense.

    Raises ValueError for a name not in ATTACKS, and for `joint` and the `score-aware` ones on a defense
    without a detector.
    """
    if name not in ATTACKS:
        raise ValueError(f"there is no attack {name!r}: choose from {tuple(ATTACKS)}")
    mode, make, wanted, eot, chains = ATTACKS[name]
    if {"detector", "statistics"} & set(wanted) and not box.detectors:
        raise ValueError(f"{name} needs the anomaly flag's detector")
    gradient = box.strongest if mode is None else mode
    steps = options.steps
    # At eps 0, a control, a step must still be positive.
    step = options.step or max(options.eps, 1e-9) / ((steps or Mim.steps) if name == "mim" else 4)
    # Without a purification there is no noise, and nothing to average.
    random = box.setting.random
    own = 16 if mode is None else BpdaEot.samples
    samples, check = (chains or options.samples or own, options.check) if random else (1, 1)
    known: dict[str, Any] = {
        "step": step,
        "samples": samples,
        "check": check,
        "loss": options.loss,
        "gradient": gradient,
        "bf16": options.bf16,
        "levels": options.levels,
        "detector": box.detectors[0] if box.detectors else None,
        "statistics": box.statistics,
        **({} if steps is None else {"steps": steps}),
        **({} if options.restarts is None else {"restarts": options.restarts}),
    }
    attack = make(norm=options.norm, eps=options.eps, **{key: known[key] for key in wanted if key in known})
    verifies = check if random and "check" in wanted else None
    if gradient == "bare":
        return Plan(attack, box.classifier, gradient, 1, verifies)
    # Without a gradient any would do; BPDA's builds no graph through the purification.
    samples = samples if eot else 1
    target = Eot(box, samples=samples, gradient="bpda" if gradient == "none" else gradient)
    return Plan(attack, target, gradient, samples, verifies)
