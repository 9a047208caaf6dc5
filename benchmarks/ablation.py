"""What each part of hardening is worth: variants of `train harden` with the same seconds of a processor.

Every variant starts from the networks of one bundle, gets as many updates as fit in its seconds of one core,
and is attacked with exact gradients on test images: annealed ascent of the cross entropy, then of the margin
on what is left.  No image of the test split trains or chooses anything.

A variant that is done lies in its folder of --work with its row; the same command goes on with the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from export import hardened
from metastable import datasets
from metastable.attacks.annealed import Annealed
from metastable.attacks.ascent import Loss
from metastable.attacks.target import Target
from metastable.bundle import shipped
from metastable.errors import MetastableError
from metastable.evaluation import cli
from metastable.evaluation.portion import portion
from metastable.evaluation.same import same_run
from metastable.evaluation.stats import wilson
from metastable.networks import channels_last
from metastable.training import harden, harden_parts, harden_session
from metastable.training.harden_config import HardenConfig
from metastable.training.harden_pipeline import Pipeline

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "start": ("nothing is trained", {}),
    "A": ("stability: the purifier, on noise, without labels", {"mode": "stability"}),
    "B": ("adversarial, the purifier", {"mode": "purifier"}),
    "C": ("adversarial, purifier and classifier", {"mode": "both"}),
    "D": (
        "adversarial, the classifier, no purifier",
        {"mode": "classifier", "sigma": 0.0, "check_every": 60},
    ),
    # Without noise FGSM collapses within so few updates (Wong et al. 2020), and the guard does not save it.
    "D2": (
        "as D, with attacks of two steps",
        {"mode": "classifier", "sigma": 0.0, "check_every": 60, "attack_steps": 2},
    ),
    "D behind B": (
        "adversarial, the classifier, behind the purifier of B",
        {"mode": "classifier", "frozen_purifier": True},
    ),
    "E2": ("as C, two steps with noise in each", {"mode": "both", "unroll": 2}),
    "E4": ("as C, four steps with noise in each", {"mode": "both", "unroll": 4}),
}
VOTES = 24  # chains of an answer, as many as the setting `fast` has
AT_ONCE = 50
TIMED = 64
TURNS = 3
SETTINGS = Path("model_store/hardened-settings.yaml")


@dataclass(frozen=True)
class AblationConfig:
    """What every variant gets.

    Attributes:
        cpu_minutes: of one core, that an update's measured seconds are divided into.
        natural: test images that are answered as they are; the first `n` of them are attacked.
        samples: noisy copies that a gradient of the attack is averaged over.
        steps: of each of its two runs.
        bf16: gradients of the attack in bfloat16.
    """

    cpu_minutes: float = 8.0
    n: int = 100
    natural: int = 500
    eps: float = 8 / 255
    samples: int = 4
    steps: int = 30
    bf16: bool = True


@dataclass(frozen=True)
class Whole:
    """All that makes the rows of a folder comparable."""

    config: AblationConfig
    base: HardenConfig


class Steady(Annealed):
    """The attack on a target that is noisy itself: what a candidate is worth is a mean over as many chains.

    By one look it would leave early, with the luckiest one: so it left 33 of 100 images of `start`.
    """

    def on(self, target: Target, seed: int) -> tuple[Target, int]:
        return target, math.ceil(self.window / self.samples)


class Noisy:
    """A pipeline as an attack's target: mean logits over fresh noisy copies of every image.

    Args:
        bf16: convolutions in bfloat16, for gradients; answers that are judged are in float32.
    """

    def __init__(self, pipeline: Pipeline, copies: int, seed: int, *, bf16: bool = False) -> None:
        self._pipeline, self._copies, self._bf16 = pipeline, copies, bf16
        self._rng = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        copies = self._copies
        steps = self._pipeline.dynamics.unroll
        noise = torch.randn(steps, copies * len(x), *x.shape[1:], generator=self._rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16, cache_enabled=False):
            logits, _ = self._pipeline(torch.cat([x] * copies), noise)
        mean: Tensor = logits.view(copies, len(x), -1).mean(0)
        return mean


def measure(
    base: HardenConfig,
    data: Path,
    names: Sequence[str],
    config: AblationConfig,
    work: Path,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Train and attack the named variants: their rows.

    Args: base: what all variants share; their own fields go on top of it.

    Raises DataError for too few images, or a folder `work` of another configuration.
    """
    work.mkdir(parents=True, exist_ok=True)
    same_run(work / "config.json", Whole(config, base))
    test = portion(datasets.load(base.dataset, data, "test"), max(config.n, config.natural))
    images = datasets.to_float(test.images).contiguous(memory_format=torch.channels_last)
    rows = [_row(base, data, name, images, test.labels, config, work) for name in names]
    if picture:
        draw(rows, config, picture)
    return {"rows": rows, "cpu_minutes": config.cpu_minutes, "eps": config.eps, "votes": VOTES}


def _row(
    base: HardenConfig,
    data: Path,
    name: str,
    images: Tensor,
    labels: Tensor,
    config: AblationConfig,
    work: Path,
) -> dict[str, Any]:
    """One variant, from its file where it is done."""
    folder = work / name.replace(" ", "-")
    if (done := folder / "row.json").exists():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    print(f"{name}: {VARIANTS[name][0]}", flush=True)
    chosen = dataclasses.replace(base, **VARIANTS[name][1])
    if chosen.frozen_purifier:
        chosen = dataclasses.replace(chosen, bundle=str(_of_b(base, work)), start=hardened.PURIFIER)
    trained: dict[str, Any] = {"updates": 0}
    if name == "start":
        parts = harden_parts.start(chosen, images)
        pipeline = channels_last(harden_parts.pipeline_of(parts, chosen))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        updates = max(1, math.floor(60 * config.cpu_minutes / seconds(base, data, work)[name]))
        # Checks are no part of what is compared, so there are few, and they choose nothing.
        every = VARIANTS[name][1].get("check_every", updates)
        chosen = dataclasses.replace(chosen, updates=updates, check_every=every)
        metrics = harden.train(chosen, data, folder / "run", "cpu")
        trained = {key: metrics[key] for key in ("updates", "epochs", "restorations")}
        session = harden_session.begin(chosen, data, folder / "run", "cpu")
        session.averaged()
        pipeline = session.judged
    row = {
        "variant": name,
        "what": VARIANTS[name][0],
        **trained,
        "sigma": chosen.unroll_noise if chosen.unroll > 1 else chosen.sigma,
        **judged(pipeline, images, labels, config),
    }
    folder.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(row) + "\n")
    return row


def _of_b(base: HardenConfig, work: Path) -> Path:
    """A bundle with the purifier that variant B trained; MetastableError where there is none yet."""
    if not (work / "B" / "row.json").exists():
        raise MetastableError("`D behind B` needs B before it: name both")
    out = work / "bundle-of-B"
    if not (out / "bundle.json").exists():
        hardened.build(work / "B" / "run", shipped.path(base.bundle), SETTINGS, out.name, out)
    return out


def seconds(base: HardenConfig, data: Path, work: Path) -> dict[str, float]:
    """Processor's seconds of one update of each variant, measured once and in turns.

    Other work on the machine makes an update dearer in the processor's time too, so all are measured beside
    the same.
    """
    plan = work / "plan.json"
    if not plan.exists():
        sessions = {}
        for name, (_, fields) in VARIANTS.items():
            if name != "start":
                one = dataclasses.replace(base, **fields)  # `D behind B` behind a purifier of B's size
                sessions[name] = harden_session.begin(one, data, work / "timing" / name, "cpu")
        spent: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(TURNS):
            for name, session in sessions.items():
                began = time.process_time()
                session.update.seconds(session.batches, 1)  # and one more before it counts
                spent[name].append((time.process_time() - began) / 2)
        shutil.rmtree(work / "timing")
        plan.write_text(json.dumps({name: min(each) for name, each in spent.items()}) + "\n")
    found: dict[str, float] = json.loads(plan.read_text())
    return found


def judged(pipeline: Pipeline, images: Tensor, labels: Tensor, config: AblationConfig) -> dict[str, Any]:
    """Accuracies, each with its Wilson interval, and what a chain costs, of a pipeline on test images.

    An image that is answered wrongly before the attack, or after either run of it, is lost.
    """
    with pipeline.held():
        natural = _answers(pipeline, images, seed=1) == labels
        left = natural[: config.n].clone()
        losses: tuple[Loss, ...] = ("ce", "margin")
        for number, loss in enumerate(losses):
            attack = Steady(eps=config.eps, steps=config.steps, samples=config.samples, loss=loss)
            for rows in batches(left.nonzero().squeeze(1)):
                target = Noisy(pipeline, config.samples, seed=10 + number, bf16=config.bf16)
                moved = attack(target, images[rows], labels[rows], seed=number, progress=True).images
                left[rows] = _answers(pipeline, moved, seed=20 + number) == labels[rows]
        cost = _milliseconds(pipeline, images)
    return {
        "natural": _share(natural),
        "natural_n": len(natural),
        "left": _share(left),
        "n": len(left),
        "ms_a_chain": cost,
    }


def batches(rows: Tensor) -> list[Tensor]:
    """Rows in parts of at most AT_ONCE, none of which is empty."""
    return [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]


@torch.no_grad()
def _answers(pipeline: Pipeline, images: Tensor, seed: int) -> Tensor:
    answer = Noisy(pipeline, VOTES, seed)
    return torch.cat([answer(part).argmax(1) for part in batches(images)])


def _share(right: Tensor) -> list[float]:
    n, hits = len(right), int(right.sum())
    return [hits / n, *wilson(hits, n)]


@torch.no_grad()
def _milliseconds(pipeline: Pipeline, images: Tensor) -> float:
    """Processor's milliseconds of one chain, the best of five batches."""
    target, found = Noisy(pipeline, 1, seed=0), []
    for _ in range(6):
        began = time.process_time()
        target(images[:TIMED])
        found.append(time.process_time() - began)
    return 1000 * min(found[1:]) / len(images[:TIMED])


def draw(rows: Sequence[dict[str, Any]], config: AblationConfig, path: Path) -> None:
    """Natural accuracy and what the attack leaves, with intervals, by variant."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for shift, key, name in ((-0.2, "natural", "natural"), (0.2, "left", "after the attack")):
        middle, low, high = 100 * np.array([row[key] for row in rows]).T
        at = np.arange(len(rows)) + shift
        axes.bar(at, middle, width=0.4, yerr=[middle - low, high - middle], capsize=3, label=name)
    axes.set_xticks(range(len(rows)), [row["variant"] for row in rows])
    axes.set(ylabel="answered rightly, %", ylim=(0, 100))
    axes.set_title(f"{config.cpu_minutes:g} minutes of one core each, eps {255 * config.eps:g}/255")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def fill(one: argparse.ArgumentParser) -> None:
    """Make the parser that of this benchmark."""
    one.add_argument("--data", help="folder of the data sets (default: METASTABLE_DATA)")
    one.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    one.add_argument(
        "--cpu-minutes", type=float, default=AblationConfig.cpu_minutes, help="of one core, for each"
    )
    one.add_argument("--n", type=cli.count, default=AblationConfig.n, help="test images that are attacked")
    one.add_argument("--work", type=Path, default=Path("runs/ablation"), help="folder of the runs; resumed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    names = tuple(name.strip() for name in args.variants.split(","))
    if unknown := sorted(set(names) - set(VARIANTS)):
        raise MetastableError(f"there are no variants {unknown}: choose from {', '.join(VARIANTS)}")
    if not 0 < args.cpu_minutes < math.inf:
        raise MetastableError(f"--cpu-minutes must be above 0, not {args.cpu_minutes}")
    base = HardenConfig(bundle=str(args.bundle), check_images=128, check_eot=2)
    config = AblationConfig(cpu_minutes=args.cpu_minutes, n=args.n)
    picture = args.out.with_suffix(".png") if args.out else None
    return measure(base, datasets.data_root(args.data), names, config, args.work, picture)
