"""Accuracy under attacks that know the defense, image by image, resumable.

For every setting: the natural images are judged, the ones answered rightly are attacked, and what the
attack made is judged again by the defense as served, with chain seeds that the attacker's have nothing to
do with.  Two figures come of it.  `robust` is what the served defense still answers rightly: a break
must survive fresh noise.  `unbroken` is Algorithm 1's (Hill 2021): images of which no candidate, at
any step, was confirmed as a break by H_def chains.  It is the lower one where breaks are narrow, and
attacks without that confirmation have none.

Every image's outcome is one line of `outcomes.jsonl`.  Images are attacked in fixed groups, so that
a resumed run draws the same numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metastable import datasets
from metastable.anomaly import score_norms
from metastable.attacks.ball import Norm
from metastable.attacks.bpda_eot import BpdaEot
from metastable.attacks.catalogue import Options, Plan, plan
from metastable.attacks.target import Detector, WhiteBox
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.errors import DataError
from metastable.evaluation.outcomes import Outcome, judge, read_outcomes, same_run
from metastable.evaluation.stats import wilson

NATURAL = "natural"


@dataclass(frozen=True)
class RobustConfig:
    """What the rows depend on; kept beside their outcomes so that two runs cannot mix.

    Attributes:
        attacks: names of metastable.attacks.catalogue.
        norm, eps, step, steps, samples, check: its Options.
        batch: images that are attacked together.
    """

    settings: tuple[str, ...]
    attacks: tuple[str, ...]
    n: int
    skip: int = 0
    norm: Norm = "linf"
    eps: float = 8 / 255
    step: float | None = None
    steps: int | None = None
    samples: int = 15
    check: int = 150
    batch: int = 4
    seed: int = 0
    bundle: str = ""
    data: str = ""


def measure(
    bundle: Bundle, test: datasets.ImageSet, config: RobustConfig, out: Path, device: str = "cpu"
) -> dict[str, Any]:
    """Run what is missing in folder `out`, on `device`, and return the summary."""
    if not len(test):
        raise DataError("there are no images to attack: --n is 0, or --skip leaves out the whole split")
    attacked = _moved(bundle, device)
    plans = {(s, a): planned(attacked, s, a, config) for s in config.settings for a in config.attacks}
    out.mkdir(parents=True, exist_ok=True)
    same_run(out / "robust-config.json", config)
    run = _Run(bundle, test, config, out / "outcomes.jsonl", device)
    with tqdm(total=len(test) * (len(plans) + len(config.settings)), desc="images", mininterval=2) as bar:
        for setting in config.settings:
            for group in run.groups():
                run.judge_natural(setting, group)
                bar.update(len(group))
            for attack in config.attacks:
                for group in run.groups():
                    run.attack(setting, attack, plans[setting, attack], group)
                    bar.update(len(group))
    return summarize(read_outcomes(run.path), config, bundle)


def planned(bundle: Bundle, setting: str, attack: str, config: RobustConfig) -> Plan:
    """The named attack on a setting of the bundle, by an attacker who knows all of it but its seeds."""
    chosen = bundle.settings[setting]
    detector = None
    if bundle.anomaly is not None:
        detector = Detector(bundle.scores[bundle.anomaly.network], bundle.anomaly.threshold)
    score = bundle.scores[chosen.network] if chosen.purifies else torch.zeros_like
    samples, check = (config.samples, config.check) if chosen.purifies else (1, 1)
    return plan(
        attack,
        WhiteBox(chosen, bundle.classifier, score, detector),
        Options(config.norm, config.eps, config.step, config.steps, samples, check),
    )


class _Run:
    """The outcomes so far, and what adds to them."""

    def __init__(
        self, bundle: Bundle, test: datasets.ImageSet, config: RobustConfig, path: Path, device: str
    ) -> None:
        if bundle.anomaly is None:
            raise DataError("the bundle has no anomaly calibration: run the calibrate command first")
        self.path, self._device = path, device
        self._bundle, self._config, self._labels = bundle, config, test.labels
        self._images = datasets.to_float(test.images)
        self._score = bundle.scores[bundle.anomaly.network]
        runner = TorchRunner(bundle.networks, bundle.classifier, device=device)
        self._engine = LocalEngine(runner, bundle.settings, bundle.shape)
        self._done = {(o["setting"], o["attack"], o["index"]): o for o in read_outcomes(path)}

    def groups(self) -> Iterator[list[int]]:
        indices, size = list(range(len(self._labels))), self._config.batch
        return (indices[start : start + size] for start in range(0, len(indices), size))

    def judge_natural(self, setting: str, group: list[int]) -> None:
        if left := [i for i in group if (setting, NATURAL, i) not in self._done]:
            self._write(setting, NATURAL, left, self._judged(setting, NATURAL, left, self._images[left]))

    def attack(self, setting: str, name: str, made: Plan, group: list[int]) -> None:
        """Attack a group's images that are answered rightly; the others are lost already."""
        left = [i for i in group if (setting, name, i) not in self._done]
        if not left:
            return
        natural = {i: self._done[setting, NATURAL, i] for i in group}
        lost = [i for i in left if natural[i]["predicted"] != natural[i]["label"]]
        same = ("predicted", "score", "flagged", "chains", "decided", "steps", "ms")
        unchanged = [{key: natural[i][key] for key in same} for i in lost]
        self._write(setting, name, lost, [{**o, "broken": True, "seconds": 0.0} for o in unchanged])
        right = [i for i in group if natural[i]["predicted"] == natural[i]["label"]]
        if not set(right) & set(left):
            return
        started = time.perf_counter()
        seed = _secret(self._config.seed, "attacker", setting, name, group[0]) % 2**32
        images, labels = self._images[right].to(self._device), self._labels[right].to(self._device)
        found = made.attack(made.target, images, labels, seed=seed)
        seconds = (time.perf_counter() - started) / len(right)
        outcomes = self._judged(setting, name, right, found.images.cpu())
        for row, outcome in enumerate(outcomes):
            strength = float(found.strength[row])
            outcome |= {"broken": strength > 0, "strength": round(strength, 4), "seconds": round(seconds, 2)}
        pairs = [(i, o) for i, o in zip(right, outcomes, strict=True) if i in left]
        self._write(setting, name, [i for i, _ in pairs], [o for _, o in pairs])

    def _judged(self, setting: str, name: str, indices: list[int], images: Tensor) -> list[Outcome]:
        norms = score_norms(images, self._score)
        seeds = [_secret(self._config.seed, "judge", setting, name, i) for i in indices]
        return judge(self._bundle, self._engine, images, norms, seeds, setting)

    def _write(self, setting: str, name: str, indices: list[int], outcomes: list[Outcome]) -> None:
        with self.path.open("a") as file:
            for index, outcome in zip(indices, outcomes, strict=True):
                label = int(self._labels[index])
                line = {"setting": setting, "attack": name, "index": index, "label": label, **outcome}
                file.write(json.dumps(line) + "\n")
                self._done[setting, name, index] = line


def _moved(bundle: Bundle, device: str) -> Bundle:
    """A copy whose networks are on the device."""
    classifier, networks = copy.deepcopy((bundle.classifier, bundle.networks))
    for network in (classifier, *networks.values()):
        network.to(device)
    return dataclasses.replace(bundle, classifier=classifier, networks=networks)


def summarize(outcomes: list[Outcome], config: RobustConfig, bundle: Bundle) -> dict[str, Any]:
    """Rows defense x attack; accuracies with their Wilson intervals as [value, low, high]."""
    rows = []
    for name in config.settings:
        setting = bundle.settings[name]
        purified = setting.purifies
        natural = [o for o in outcomes if o["setting"] == name and o["attack"] == NATURAL]
        for attack in config.attacks:
            these = [o for o in outcomes if o["setting"] == name and o["attack"] == attack]
            made = planned(bundle, name, attack, config)
            verified = isinstance(
                made.attack, BpdaEot
            )  # the others' success was judged by few chains, or none
            rows.append(
                {
                    "setting": name,
                    "attack": attack,
                    "gradient": made.mode,
                    "n": len(these),
                    "natural": _share([_right(o) for o in natural]),
                    "robust": _share([_right(o) for o in these]),
                    "unbroken": _share([not o["broken"] for o in these]) if verified else None,
                    "right_or_flagged": _share([_right(o) or o["flagged"] for o in these]),
                    "norm": config.norm,
                    "eps": config.eps,
                    "K": setting.steps,
                    "H": setting.chains if purified else 1,
                    "delta": setting.delta,
                    "eot": config.samples if purified and made.mode != "bare" else 1,
                    "check": config.check if purified and verified else None,
                    "parameters": repr(made.attack),
                    "seconds": round(float(np.sum([o["seconds"] for o in these])), 1),
                }
            )
    return {"rows": rows}


def _right(outcome: Outcome) -> bool:
    return bool(outcome["label"] == outcome["predicted"])


def _share(values: list[bool]) -> list[float]:
    low, high = wilson(sum(values), len(values))
    return [round(v, 4) for v in (sum(values) / len(values), low, high)]


def _secret(*parts: object) -> int:
    """128 bits that no other parts give: the judge's seeds tell nothing of the attacker's, and repeat."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "little")
