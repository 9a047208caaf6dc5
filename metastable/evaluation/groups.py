"""Groups of images that are judged or attacked together, and what makes their outcomes.

What a group comes to depends on the group and on what `Judge` was made of, and on nothing that was done
before: noise comes from (seed, setting, attack, image), and batches hold images of one group only.  So groups
may be done in any order, again, and in any process (metastable.evaluation.pool).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metastable import datasets
from metastable.anomaly import score_norms
from metastable.attacks.ball import Ball
from metastable.attacks.catalogue import Options, Plan, plan
from metastable.attacks.white_box import attackable, white_box
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine, engine_on
from metastable.errors import DataError
from metastable.evaluation.outcomes import Outcome, judge
from metastable.evaluation.robust_rows import NATURAL
from metastable.networks.onnx_gradient import IMAGES


@dataclass(frozen=True)
class RobustConfig(Options):
    """What the outcomes of a setting depend on; kept beside them so that two runs cannot mix.

    Attributes:
        batch: images that are attacked together.
        bits: of what is judged; 32 judges an attack's floating-point images as they are, and so does l_2.
        data: digest of the data set.
        setting: what the setting says, and the digests of the networks that it uses; `measure` fills it in.
    """

    skip: int = 0
    batch: int = 4
    seed: int = 0
    bits: int = 8
    data: str = ""
    setting: str = ""


class Group(NamedTuple):
    """Images to judge or to attack together.

    Attributes:
        attack: a name of metastable.attacks.catalogue, or NATURAL to judge them as they are.
        eps: radius of the ball.
        first: the image that the attack's seed comes from; it need not be attacked itself.
        images: their places in the data set's order.
    """

    setting: str
    attack: str
    eps: float
    first: int
    images: tuple[int, ...]


class Found(NamedTuple):
    """What a group came to: an outcome an image, and what the attack made where that is 8 bits deep.

    The pixels are uint8 [N, C, H, W].
    """

    outcomes: list[Outcome]
    pixels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Judge:
    """Makes the outcomes of groups; what it needs for that it makes once, where it is called.

    Args:
        bundle: on the CPU, with the settings that are judged.
        test: images and labels; groups name them by their places.
        config: its eps is not used: that is the group's.
        device: of the attacks.
        home: where answers come from.

    Raises BundleError for a bundle without a calibrated flag.
    """

    bundle: Bundle
    test: datasets.ImageSet
    config: RobustConfig
    device: str = "cpu"
    home: str = "cpu"

    def __post_init__(self) -> None:
        _ = self.bundle.calibration

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of: the rest is made again where it goes."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def attacker(self) -> Bundle:
        """The bundle as it is attacked, on the attacks' device.

        Raises what `attackable` raises.
        """
        there = self._judged if self.device == self.home else moved(self.bundle, self.device)
        return attackable(there, datasets.to_float(self.test.images[:IMAGES]), self.device)

    def plan(self, setting: str, attack: str, eps: float) -> Plan:
        """The named attack on a setting at a radius."""
        return planned(self.attacker, setting, attack, dataclasses.replace(self.config, eps=eps))

    def __call__(self, group: Group) -> Found:
        """The outcomes of a group, attacked first unless it is NATURAL.

        Raises DataError for an attack that leaves its ball, and what attacks raise.
        """
        images = self._images[list(group.images)]
        if group.attack == NATURAL:
            return Found(self._answers(group, images))
        started = time.perf_counter()
        seed = secret(self.config.seed, "attacker", group.setting, group.attack, group.first) % 2**32
        labels = self.test.labels[list(group.images)]
        made = self.plan(group.setting, group.attack, group.eps)
        found = made.attack(made.target, images.to(self.device), labels.to(self.device), seed=seed)
        seconds = (time.perf_counter() - started) / len(images)
        made_of, ball = found.images.cpu(), Ball(self.config.norm, group.eps)
        far = ball.distance(made_of, images)
        if not bool((far <= ball.eps + 1e-5).all()):  # nor where it is no number
            raise DataError(
                f"{group.attack} left its ball: its images are {far.max():.4g} from the natural ones"
            )
        pixels = None
        if self.config.bits == 8 and ball.norm == "linf":
            made_of = ball.eight_bit(made_of, images)
            pixels = (255 * made_of).round().byte()
        outcomes = self._answers(group, made_of)
        for row, outcome in enumerate(outcomes):
            strength = float(found.strength[row])
            outcome |= {
                "broken": strength > 0,
                "strength": round(strength, 4) if math.isfinite(strength) else None,
                "distance": round(float(far[row]), 5),
                "seconds": round(seconds, 2),
            }
        return Found(outcomes, pixels)

    def _answers(self, group: Group, images: Tensor) -> list[Outcome]:
        bundle, network = self._judged, self._judged.calibration.network
        home = next(bundle.networks[network].parameters()).device
        norms = score_norms(images.to(home), bundle.scores[network]).cpu()
        seeds = [secret(self.config.seed, "judge", group.setting, group.attack, i) for i in group.images]
        return judge(bundle, self._engine, images, norms, seeds, group.setting)

    @cached_property
    def _judged(self) -> Bundle:
        return moved(self.bundle, self.home)

    @cached_property
    def _engine(self) -> LocalEngine:
        return engine_on(torch.device(self.home).type, self._judged)

    @cached_property
    def _images(self) -> Tensor:
        return datasets.to_float(self.test.images)


def planned(bundle: Bundle, setting: str, attack: str, config: RobustConfig) -> Plan:
    """The named attack on a setting of an `attackable` bundle, knowing all of it but its seeds."""
    return plan(attack, white_box(bundle, setting), config)


def moved(bundle: Bundle, device: str) -> Bundle:
    """A copy whose networks are on the device; itself for the CPU, where bundles are loaded."""
    if device == "cpu":
        return bundle
    classifier, networks = copy.deepcopy((bundle.classifier, bundle.networks))
    for network in (classifier, *networks.values()):
        network.to(device)
    return dataclasses.replace(bundle, classifier=classifier, networks=networks)


def secret(*parts: object) -> int:
    """128 bits that no other parts give: the judge's seeds tell nothing of the attacker's, and repeat."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "little")
