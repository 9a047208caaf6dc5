"""What one evaluation a step and one view a chain save, and what they cost in accuracy.

Version 0.1.0 evaluated the score twice in a step, for its adaptive size, and classified every chain together
with its mirror image.  A purifier that was trained for whole steps needs the first only once, and mirroring
every second chain gives the same mean for half of the second.  Each is left out in turn, on one runner,
interleaved; accuracies are those of the same images with the same number of chains.  The cheapest case may be
timed on runners of fewer bits as well, in the same rounds.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.steps import interleave
from metastable.bundle import Bundle
from metastable.datasets import ImageSet, to_float
from metastable.defense import defend, score_of
from metastable.dynamics.adp import Adp
from metastable.engine.runners import Batch, Runner
from metastable.errors import MetastableError
from metastable.evaluation.stats import wilson
from metastable.settings import Setting

ADAPTIVE = (0.1, 2.0)
CASES = {
    "two evaluations, two views": (True, True),
    "one evaluation, two views": (False, True),
    "two evaluations, one view": (True, False),
    "one evaluation, one view": (False, False),
}
"""Whether step sizes adapt, and whether each chain is classified on both views."""
AT_ONCE = 25


class BothViews(nn.Module):
    """The mean over an image and its mirror image."""

    def __init__(self, view: nn.Module) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.view(x) + self.view(x.flip(3)))  # type: ignore[no-any-return]


def measure(
    bundle: Bundle,
    runner: Runner,
    setting: str,
    chains: int,
    test: ImageSet,
    rounds: int,
    lower: Mapping[str, Runner] | None = None,
) -> list[dict[str, Any]]:
    """A row a case: median milliseconds of `chains` chains, its ratio to the last case, and accuracy.

    `lower`: runners of fewer bits, by name: a row each for the last case, without accuracy.

    Raises MetastableError for a setting without ADP's steps, or a classifier that averages views itself.
    """
    chosen = bundle.settings[setting]
    if not isinstance(chosen.dynamics, Adp) or getattr(bundle.classifier, "flip_average", False):
        raise MetastableError(
            "price needs a setting of dynamics adp, and a classifier that looks at one view"
        )
    variants = {
        name: variant(chosen, chains, adapts=adapts, both=both) for name, (adapts, both) in CASES.items()
    }
    x = to_float(test.images[:1]).expand(chains, *bundle.shape).contiguous()
    works = {name: partial(answer, runner, one, x, CASES[name][1]) for name, one in variants.items()}
    least = list(CASES)[-1]
    fewer = {f"{least}, {name}": one for name, one in (lower or {}).items()}
    works |= {name: partial(answer, one, variants[least], x, False) for name, one in fewer.items()}
    seconds = interleave(works, rounds, "price")

    def timed(name: str) -> dict[str, Any]:
        paired = [ours / theirs for ours, theirs in zip(seconds[name], seconds[least], strict=True)]
        return {
            "case": name,
            "chains": chains,
            "ms": round(1e3 * statistics.median(seconds[name]), 2),
            "ratio": round(statistics.median(paired), 3),
        }

    rows = []
    for name, one in variants.items():
        right = sum(_right(bundle, one, test, CASES[name][1]))
        accuracy = [round(v, 4) for v in (right / len(test), *wilson(right, len(test)))]
        rows.append(timed(name) | {"accuracy": accuracy})
    return [*rows, *map(timed, fewer)]


def variant(setting: Setting, chains: int, *, adapts: bool, both: bool) -> Setting:
    """The setting with `chains` chains that never stop early, and so many evaluations and views."""
    assert isinstance(setting.dynamics, Adp)
    high = setting.dynamics.step_bounds[1]
    moved = setting.moving(step_bounds=ADAPTIVE if adapts else (high, high))
    return dataclasses.replace(moved, chains=chains, delta=None, mirror=not both)


def answer(runner: Runner, setting: Setting, x: Tensor, both: bool) -> Tensor:
    """The mean logits of the chains x [B, C, H, W], without the noise, which costs the same in each case."""
    kind = setting.dynamics.kind
    assert kind is not None
    keys = [(1 << 100, chain) for chain in range(len(x))]
    batch = Batch(x, keys, [0] * len(x), [setting.dynamics.row(flagged=True)] * len(x))
    states, _ = runner.advance(kind, batch, setting.steps)
    seen = torch.cat([states, states.flip(3)]) if both else states
    return runner.classify(seen).mean(0)


def _right(bundle: Bundle, setting: Setting, test: ImageSet, both: bool) -> list[bool]:
    classifier = BothViews(bundle.classifier) if both else bundle.classifier
    found: list[bool] = []
    for start in tqdm(range(0, len(test), AT_ONCE), desc="accuracy", mininterval=2):
        part = slice(start, start + AT_ONCE)
        images, labels = to_float(test.images[part]), test.labels[part]
        said = defend(
            images,
            [(1 << 90) + start + i for i in range(len(images))],
            setting,
            classifier=classifier,
            scores={setting.network: score_of(bundle.scores, setting)},
            flagged=torch.ones(len(images), dtype=torch.bool),
        )
        found += (said.labels == labels).tolist()
    return found
