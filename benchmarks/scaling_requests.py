"""Requests as a fleet gets them: when, with which setting, and what their chains will say.

A chain's output is a margin: the lead of its image's class over the runner-up, in standard deviations over
the chains of that image.  An image has a true mean of it, its effect; the test of `metastable.stopping` looks
at nothing else.  Effects are drawn so that as many chains are needed as were on recorded images
(docs/results/decide.json): between the effects that the test decides at the recorded shares, interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metastable.bundle import Bundle
from metastable.errors import MetastableError
from metastable.settings import Setting
from metastable.stopping import Stopping, critical

CLASSES = 10
FAR = -20.0  # output of the classes that are no rival
NEEDED: Mapping[str, tuple[tuple[float, int], ...]] = {
    "natural": ((0.019, 150), (0.03, 96), (0.051, 48), (0.07, 24), (0.1, 17), (0.5, 8), (1.0, 6)),
    "attacked": ((0.138, 150), (0.151, 96), (0.216, 48), (0.322, 24), (0.5, 13), (1.0, 6)),
}
"""Recorded shares of images that need more than so many chains (docs/results/decide.json, transfer PGD for
the attacked ones); the hardest image has an effect of 0, the easiest is decided by the least number."""


@dataclass(frozen=True)
class Mix:
    """What is asked.

    Attributes:
        settings: and the share of requests that ask for each; the shares come to 1.
        attacked: share of images that are.
    """

    settings: tuple[tuple[Setting, float], ...]
    attacked: float

    @property
    def most(self) -> int:
        """Chains that a request may have."""
        return max(setting.most_chains for setting, _ in self.settings)

    @property
    def named(self) -> dict[str, float]:
        return {setting.name: share for setting, share in self.settings}


@dataclass(frozen=True)
class Requests:
    """N requests in the order in which they come.

    Attributes:
        at: seconds, float64 [N].
        settings: [N].
        margins: of the chains of each, float32 [N, most chains].
    """

    at: NDArray[np.float64]
    settings: Sequence[Setting]
    margins: NDArray[np.float32]


def mix_of(bundle: Bundle, text: str, attacked: float) -> Mix:
    """From `fast=0.6,balanced=0.4`; MetastableError for what is none."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise MetastableError(f"--mix needs shares like fast=0.6, not {part!r}") from None
    if unknown := sorted(set(shares) - set(bundle.settings.names)):
        raise MetastableError(f"there are no settings {unknown}: choose from {bundle.settings.names}")
    if min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1) or not 0 <= attacked <= 1:
        raise MetastableError("the shares of --mix must come to 1, and that of --attacked be in [0, 1]")
    return Mix(tuple((bundle.settings[name], share) for name, share in shares.items()), attacked)


def poisson(mix: Mix, rate: float, seconds: float, seed: int) -> Requests:
    """A Poisson stream of `rate` a second for so long."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds + 10 * math.sqrt(rate * seconds) + 10)))
    at = at[at < seconds]
    settings, shares = zip(*mix.settings, strict=True)
    chosen = rng.choice(len(settings), size=len(at), p=shares)
    return Requests(at, [settings[i] for i in chosen], margins(mix, len(at), rng))


def margins(mix: Mix, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Of the chains of `count` images, float32 [count, most chains]."""
    attacked = rng.random(count) < mix.attacked
    where = rng.random(count)
    effects = np.where(attacked, effect("attacked", where), effect("natural", where)).astype(np.float32)
    return effects[:, None] + rng.standard_normal((count, mix.most), dtype=np.float32)


def effect(images: str, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the images that lie at these shares of all, counted from the hardest: [N] -> [N]."""
    level = Stopping().delta / (CLASSES - 1)
    shares, needed = zip(*NEEDED[images], strict=True)
    known = [0.0, *(critical(n, level) / math.sqrt(n) for n in needed)]
    return np.interp(share, [0.0, *shares], known)
