"""Does an artifact compute what its bundle does?  Judged against float64, and refused where not.

Three questions, on random images, on real ones, and on real ones with the noise of chains (NOISE):

- graphs: relative L2 error of every score and of the logits, row by row.  A piecewise linear network has
  a gradient that jumps where the sign of an activation does, and float32 flips some near zero: so the
  median and the 90 % quantile are judged, not the maximum.
- labels (real images): are the labels of purified images those of the float64 reference
  (`metastable.defense`), with equal seeds and CHAINS chains each?  For bfloat16 and int8 this says more than
  the norms do.
- the classifier's labels without purification.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metastable import defense
from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine
from metastable.engine.runners import Runner
from metastable.engine.runners.exported import CLASSIFIER
from metastable.errors import BundleError
from metastable.evaluation.stats import wilson
from metastable.networks.onnx_classifier import OnnxClassifier
from metastable.pixels import CPU_PIXELS, at_most
from metastable.settings import Setting, Settings

RANDOM = 16  # images
CHAINS = 2  # an image: few, so that their noise is not averaged away
LONGEST = 8  # steps of a chain that is compared: float64 is slow
BATCH = 50
NOISE = 0.12
"""Standard deviation of the noise on real images, about what the shipped settings inject."""


@dataclass(frozen=True)
class Tolerance:
    """The most by which an artifact may differ from the float64 reference.

    Attributes:
        median, tail: of the relative L2 errors of rows: their median and their 90 % quantile.
        labels: the least share of equal labels; one image of a small set may differ in any case.
        scores, logits: the kinds of images on which their errors are judged; others are only recorded.
    """

    median: float
    tail: float
    labels: float
    scores: tuple[str, ...] = ("random", "real", "noisy")
    logits: tuple[str, ...] = ("random", "real", "noisy")


TOLERANCES: dict[str, Tolerance] = {
    "float32": Tolerance(median=1e-5, tail=1e-3, labels=0.99),
    "float32, fused steps": Tolerance(median=1e-3, tail=1e-1, labels=0.99),
    "float16": Tolerance(median=1e-2, tail=1e-1, labels=0.98),
    "bfloat16": Tolerance(median=1e-1, tail=3e-1, labels=0.95),
    "int8": Tolerance(median=0.15, tail=0.3, labels=0.95, scores=("noisy",), logits=("real",)),
}
"""By the type of the convolutions.  A fused step of ADP is a quotient of differences: errors grow.

8 bits are calibrated on what a network sees, and judged on it: scores on noisy images, logits on natural
ones.  They saturate on uniform noise; on clean images scores are small, and their errors large beside them: a
server that runs them takes the anomaly score, which is of the clean image, from float32 (`handlers.service`).
"""


class Reference:
    """A bundle in float64, and what it says of some images.

    Args:
        real: [N, C, H, W] in [0, 1].

    A classifier that came as a graph runs in float32, as everywhere.
    """

    def __init__(self, bundle: Bundle, real: Tensor) -> None:
        networks = {name: copy.deepcopy(network).double() for name, network in bundle.networks.items()}
        self.scores: dict[str, Callable[[Tensor], Tensor]] = {
            name: network.score  # type: ignore[misc]
            for name, network in networks.items()
        }
        self.bundle, self.networks, self.real = bundle, networks, real
        self.classifier: nn.Module = bundle.classifier
        if not isinstance(bundle.classifier, OnnxClassifier):
            self.classifier = copy.deepcopy(bundle.classifier).double()
        generator = torch.Generator().manual_seed(0)
        self.images = {
            "random": torch.rand(RANDOM, *bundle.shape, generator=generator),
            "real": real,
            "noisy": real + NOISE * torch.randn(real.shape, generator=generator),
        }
        self.settings = judged(bundle.settings)
        self.seeds = range(len(real))
        runs: dict[str, Callable[[Tensor], Tensor]] = {**self.scores, CLASSIFIER: self.classifier}
        with torch.inference_mode():
            self.outputs = {
                name: {kind: _batched(run, x.double()) for kind, x in self.images.items()}
                for name, run in runs.items()
            }
            self.flagged = torch.zeros(len(real), dtype=torch.bool)
            if bundle.anomaly is not None:
                norms = score_norms(real.double(), self.scores[bundle.anomaly.network])
                self.flagged = bundle.anomaly.flags(norms)
            self.labels = {
                name: defense.defend(
                    real.double(),
                    self.seeds,
                    setting,
                    classifier=self.classifier,
                    scores=self.scores,
                    flagged=self.flagged,
                ).labels
                for name, setting in self.settings.by_name.items()
            }


def judged(settings: Settings) -> Settings:
    """The settings whose labels are compared: the default, and one more for each other network and walk.

    They take CHAINS chains, LONGEST steps at the most, and do not stop early.
    """
    chosen: dict[tuple[str, str], Setting] = {}
    for name in (settings.default, *settings.names):
        setting = settings[name]
        kind = setting.dynamics.kind
        if setting.network and kind is not None and not kind.differentiates:
            shorter = setting.moving(steps=min(setting.steps, LONGEST))
            shorter = dataclasses.replace(shorter, chains=CHAINS, delta=None)
            chosen.setdefault((setting.network, setting.dynamics.name), shorter)
    by_name = {setting.name: setting for setting in chosen.values()}
    return dataclasses.replace(settings, by_name=by_name)


def measure(runner: Runner, reference: Reference) -> dict[str, Any]:
    """What the runner says beside what the reference does: errors by graph, agreement by setting."""
    graphs: dict[str, Any] = {}
    for name, wanted in reference.outputs.items():
        graphs[name] = {
            kind: errors(_batched(_forward(runner, name), reference.images[kind]), of)
            for kind, of in wanted.items()
        }
    labels = _batched(runner.classify, reference.real).argmax(1)
    same = {"unpurified": _agreement(labels, reference.outputs[CLASSIFIER]["real"].argmax(1))}
    if reference.settings.by_name:
        engine = LocalEngine(runner, reference.settings, reference.bundle.shape)
        for name, setting in reference.settings.by_name.items():
            answers = engine.answer(reference.real, reference.seeds, setting, reference.flagged)
            labels = torch.cat([answer.result.labels for answer in answers])
            same[name] = {"chains": CHAINS, **_agreement(labels, reference.labels[name])}
    return {"graphs": graphs, "labels": same}


def errors(got: Tensor, wanted: Tensor) -> dict[str, float]:
    """Relative L2 errors of the rows of a batch: how many, their median and their 90 % quantile."""
    off = (got.double() - wanted.double()).flatten(1).norm(dim=1)
    relative = off / wanted.double().flatten(1).norm(dim=1).clamp_min(1e-30)
    relative = torch.where(relative.isfinite(), relative, math.inf)
    # Of the rows themselves: between two infinite ones lies no number.
    levels = torch.tensor([0.5, 0.9], dtype=torch.double)
    median, tail = relative.quantile(levels, interpolation="higher").tolist()
    return {"n": len(relative), "median": float(f"{median:.3g}"), "tail": float(f"{tail:.3g}")}


def refusals(figures: Mapping[str, Any], allowed: Tolerance) -> Iterator[str]:
    """What of the figures is out of tolerance, a sentence each."""
    for graph, kinds in figures["graphs"].items():
        for kind, found in kinds.items():
            if kind not in (allowed.logits if graph == CLASSIFIER else allowed.scores):
                continue
            for which in ("median", "tail"):
                most = getattr(allowed, which)
                if not found[which] <= most:
                    yield f"{graph} on {kind} images: {which} error {found[which]:g}, allowed {most:g}"
    for setting, found in figures.get("labels", {}).items():
        if found["n"] - found["same"] > max(1, math.floor((1 - allowed.labels) * found["n"])):
            yield f"labels of {setting}: {found['same']} of {found['n']} agree, allowed {allowed.labels:.0%}"


def judge(name: str, figures: Mapping[str, Any], dtype: str) -> None:
    """Raise BundleError naming the artifact and what is wrong unless the figures are in tolerance."""
    if wrong := list(refusals(figures, TOLERANCES[dtype])):
        raise BundleError(f"artifact {name} is refused, it is not its bundle: {'; '.join(wrong)}")


def _forward(runner: Runner, name: str) -> Callable[[Tensor], Tensor]:
    return runner.classify if name == CLASSIFIER else lambda x: runner.score(name, x)


@torch.inference_mode()
def _batched(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([run(part) for part in torch.split(x, at_most(BATCH, x.shape, CPU_PIXELS))])


def _agreement(got: Tensor, wanted: Tensor) -> dict[str, Any]:
    same, n = int((got == wanted).sum()), len(wanted)
    low, high = wilson(same, n)
    return {"n": n, "same": same, "low": round(low, 4), "high": round(high, 4)}
