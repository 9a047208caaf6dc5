"""Settings for a classifier that was brought, chosen by measurement: labels kept within a time an answer.

Every candidate adds noise of one level, takes one or two steps of the purifier, and averages some chains.
Chains are numbered, so all numbers of chains are judged on one run of the largest.  What is chosen keeps most
labels, clean and under a transferred attack alike, among those that keep enough of the clean ones and answer
within the budget; of its noise the cheapest that is as good, as far as so many pictures can tell.  Where
levels of noise are equal it is the highest: attackers who know the defense get further against less.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from metastable import datasets, settings
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine
from metastable.engine.runners import Runner
from metastable.evaluation.kept import BATCH, CLEAN, Views, seconds

SIGMAS = (0.04, 0.06, 0.09, 0.12, 0.16, 0.2)
STEPS = (1, 2)
CHAINS = (1, 2, 4, 8)
CAPS = {"chains": 64, "steps": 64}
MORE = 16
"""Chains of the setting `accurate`, which looks at no budget."""


@dataclass(frozen=True)
class Candidate:
    """A setting that was tried.

    Attributes:
        sigma: standard deviation of the noise, in units of [0, 1].
        steps, chains: evaluations of the purifier a chain, and chains an answer.
        clean, attacked: share of labels kept; `attacked` is None where nothing was.
        ms: of one answer, without decoding and HTTP.
    """

    sigma: float
    steps: int
    chains: int
    clean: float
    attacked: float | None
    ms: float


def measure(
    bundle: Bundle,
    runner: Runner,
    seen: Views,
    *,
    budget_ms: float,
    network: str = "score",
    sigmas: Sequence[float] = SIGMAS,
    steps: Sequence[int] = STEPS,
    chains: Sequence[int] = CHAINS,
    seed: int = 0,
) -> list[Candidate]:
    """Every candidate that answers within the budget, judged on the views of some pictures.

    Where none does it is the cheapest.

    Args:
        seen: `clean`, and at most one that is attacked.
        chains: numbers of them, rising.
    """
    keys = [(sigma, count, most) for sigma in sigmas for count in steps for most in chains]
    tried = {key: f"try_{number}" for number, key in enumerate(keys)}
    rows = {name: _setting(network, *key) for key, name in tried.items()}
    parsed = settings.parse(_text({"default": "try_0", "caps": CAPS, "settings": rows}))
    trial = dataclasses.replace(bundle, settings=parsed, shifts={})
    engine = LocalEngine(runner, parsed, bundle.shape)
    first = datasets.to_float(seen.images[CLEAN][:1])

    def timed(count: int, most: int) -> float:
        return 1e3 * seconds(trial, engine, first, tried[sigmas[0], count, most])

    ms = {(count, most): timed(count, most) for count in steps for most in chains}
    within = {key for key, one in ms.items() if one <= budget_ms} or {min(ms, key=lambda key: ms[key])}
    plans = [(sigma, count) for sigma in sigmas for count in steps if any(one == count for one, _ in within)]
    found = []
    with tqdm(total=len(plans) * len(seen.images), desc="trying settings", mininterval=2) as bar:
        for sigma, count in plans:
            numbers = [most for most in chains if (count, most) in within]
            wanted = parsed[tried[sigma, count, max(numbers)]]
            shares: dict[str, list[float]] = {}
            for view, images in seen.images.items():
                outputs = _outputs(engine, images, wanted, seed)
                right = [outputs[:, :most].mean(1).argmax(1) == seen.labels for most in numbers]
                shares[view] = [float(one.double().mean()) for one in right]
                bar.update()
            attacked = next((shares[view] for view in shares if view != CLEAN), [None] * len(numbers))
            found += [
                Candidate(sigma, count, most, clean, under, round(ms[count, most], 1))
                for most, clean, under in zip(numbers, shares[CLEAN], attacked, strict=True)
            ]
    return found


def _outputs(engine: LocalEngine, images: Tensor, setting: settings.Setting, seed: int) -> Tensor:
    """What each chain of a setting says of images [N, C, H, W]: [N, chains, classes]."""
    outputs: list[Tensor] = []
    for part in torch.split(images, BATCH):
        seeds = [(seed << 32) + len(outputs) + row for row in range(len(part))]
        unflagged = torch.zeros(len(part), dtype=torch.bool)
        answers = engine.answer(datasets.to_float(part), seeds, setting, unflagged)
        outputs += [answer.result.outputs[0] for answer in answers]
    return torch.stack(outputs).double()


def choose(found: Sequence[Candidate], *, n: int, budget_ms: float, keep: float) -> Candidate:
    """The candidate to serve; see the module.

    Where none answers within the budget it is among the cheapest; where none keeps the share `keep` of clean
    labels, all are asked.  Where nothing was attacked it is the most noise that keeps them: nothing else
    is known that speaks for less.

    Args:
        n: pictures that they were judged on: candidates within a standard error of the best are equal to it.
    """
    affordable = [one for one in found if one.ms <= budget_ms]
    if not affordable:
        least = min(one.ms for one in found)
        affordable = [one for one in found if one.ms == least]
    kind = [one for one in affordable if one.clean >= keep] or affordable
    attacked = [one.attacked for one in kind if one.attacked is not None]
    most = max(one.sigma for one in kind)
    best = max(
        kind if attacked else [one for one in kind if one.sigma == most],
        key=lambda one: (_worth(one), one.sigma),
    )
    margin = math.sqrt(sum(share * (1 - share) for share in (best.clean, best.attacked or 0.0)) / n)
    equal = [one for one in kind if _worth(one) >= _worth(best) - margin and one.sigma == best.sigma]
    return min(equal, key=lambda one: (one.ms, -_worth(one)))


def _worth(one: Candidate) -> float:
    return one.clean + (one.attacked or 0.0)


def settings_of(chosen: Candidate, network: str = "score") -> str:
    """settings.yaml around a choice: `balanced` is it, `fast` one chain, `accurate` MORE of them.

    Beside them stand `none`, and JPEG compression as what costs nearly nothing.
    """
    near = {"sigma": chosen.sigma, "steps": chosen.steps}
    rows: dict[str, Any] = {
        "none": {"dynamics": "none"},
        "jpeg75": {"dynamics": "squeeze", "way": "jpeg", "level": 75},
        "jpeg50": {"dynamics": "squeeze", "way": "jpeg", "level": 50},
        "fast": _setting(network, near["sigma"], 1, 1),
        "balanced": _setting(network, near["sigma"], chosen.steps, chosen.chains),
        "accurate": {**_setting(network, near["sigma"], chosen.steps, MORE), "delta": 0.01},
    }
    return "# Chosen by measurement for the classifier of this bundle (metastable bring).\n" + _text(
        {"default": "balanced", "caps": CAPS, "settings": rows}
    )


def draw(found: Sequence[Candidate], chosen: Candidate, budget_ms: float, path: Path) -> None:
    """Labels kept over the time of an answer: clean and attacked, a line a level of noise."""
    views = ["clean"] if chosen.attacked is None else ["clean", "attacked"]
    figure = Figure(figsize=(5 * len(views), 4), layout="constrained")
    sigmas, steps = (
        list(dict.fromkeys(values)) for values in zip(*((o.sigma, o.steps) for o in found), strict=True)
    )
    for axes, name in zip(figure.subplots(1, len(views), squeeze=False)[0], views, strict=True):
        for sigma in sigmas:
            for count, style in zip(steps, ("-", ":"), strict=False):
                line = [one for one in found if (one.sigma, one.steps) == (sigma, count)]
                x, y = [one.ms for one in line], [100 * getattr(one, name) for one in line]
                label = f"sigma {sigma:g}" if count == steps[0] else None
                axes.plot(x, y, style, marker=".", color=f"C{sigmas.index(sigma)}", label=label)
        axes.plot([chosen.ms], [100 * getattr(chosen, name)], "k*", markersize=14, label="chosen")
        axes.axvline(budget_ms, color="gray", linestyle="--")
        axes.set(title=f"{name} labels kept", xlabel="ms an answer", ylabel="%", xscale="log")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _setting(network: str, sigma: float, steps: int, chains: int) -> dict[str, Any]:
    """One evaluation a step, D(x): equal bounds fix the size of the step."""
    return {
        "dynamics": "adp",
        "network": network,
        "chains": chains,
        "steps": steps,
        "sigma": sigma,
        "step_fraction": 1.0,
        "step_bounds": [1.0, 1.0],
    }


def _text(document: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text
