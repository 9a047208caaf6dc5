"""Labels kept: what settings still answer of clean pictures, and of pictures attacked on the bare classifier.

The attack is PGD on the classifier alone, by somebody who does not know that it is defended (a transferred
attack).  What one who knows it leaves of them is the suite's to say (metastable.evaluation.suite).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metastable import datasets
from metastable.anomaly import score_norms
from metastable.attacks.pgd import Pgd
from metastable.attacks.white_box import attackable
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine
from metastable.evaluation.outcomes import judge
from metastable.evaluation.stats import auroc, wilson

CLEAN = "clean"
STEPS = 20
BATCH = 8
REPEATS = 5


@dataclass(frozen=True)
class Views:
    """The same pictures, clean and attacked.

    Attributes:
        labels: int64 [N], the answers to keep.
        images: by name, `clean` or a radius such as `4/255`: uint8 [N, C, H, W].
        labelled: whether somebody labelled them; else the labels are the bare classifier's.
    """

    labels: Tensor
    images: Mapping[str, Tensor]
    labelled: bool


def radius(eps: Fraction) -> str:
    """The name of a radius: in 255ths, as images are sent."""
    return f"{float(eps * 255):g}/255"


def views(bundle: Bundle, found: datasets.ImageSet, radii: Sequence[Fraction], seed: int = 0) -> Views:
    """Clean pictures, and each attacked within l_inf balls of `radii` on the bare classifier, in 8 bits.

    PGD of STEPS steps of a quarter of the radius from a random start.

    Raises NoGradient or MissingPackage where the classifier cannot be differentiated.
    """
    made = {CLEAN: found.images}
    if radii:
        classifier = attackable(bundle, datasets.to_float(found.images[:BATCH])).classifier
        parts = list(zip(torch.split(found.images, BATCH), torch.split(found.labels, BATCH), strict=True))
        with tqdm(total=len(parts) * len(radii), desc="attacking", unit="batch", mininterval=2) as bar:
            for eps in radii:
                attack, done = Pgd(eps=float(eps), step=float(eps) / 4, steps=STEPS), []
                for number, (images, labels) in enumerate(parts):
                    attacked = attack(classifier, datasets.to_float(images), labels, seed=seed + number)
                    done.append((255 * attacked.images).round().byte())
                    bar.update()
                made[radius(eps)] = torch.cat(done)
    return Views(found.labels, made, found.labelled)


def measure(
    bundle: Bundle, engine: LocalEngine, seen: Views, settings: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """A row a setting: {setting, n, ms, kept, flagged, shifted, auroc}.

    `kept`, `flagged` (by the score norm) and `shifted` (by the prediction shift, None without a threshold)
    are {view: [share, low, high]}, with Wilson's intervals; `auroc` is {statistic: {view: of it against
    clean}}; `ms` what one answer to one image takes.

    Raises BundleError without a calibration of the score norm.
    """
    rows = []
    total = len(settings) * sum(len(images) for images in seen.images.values())
    with tqdm(total=total, desc="answering", unit="image", mininterval=2) as bar:
        for setting in settings:
            found = {
                name: _outcomes(bundle, engine, images, setting, seed, bar.update)
                for name, images in seen.images.items()
            }
            rows.append(_row(bundle, engine, seen, setting, found))
    return rows


def _outcomes(
    bundle: Bundle,
    engine: LocalEngine,
    images: Tensor,
    setting: str,
    seed: int,
    done: Callable[[int], object],
) -> list[dict[str, Any]]:
    calibration = bundle.calibration
    outcomes: list[dict[str, Any]] = []
    for part in torch.split(images, BATCH):
        x = datasets.to_float(part)
        norms = score_norms(x, bundle.scores[calibration.network])
        seeds = [(seed << 32) + len(outcomes) + row for row in range(len(x))]
        outcomes += judge(bundle, engine, x, norms, seeds, setting)
        done(len(x))
    return outcomes


def _row(
    bundle: Bundle, engine: LocalEngine, seen: Views, setting: str, found: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    labels, n = seen.labels.tolist(), len(seen.labels)

    def share(name: str, counts: Callable[[int, dict[str, Any]], bool]) -> list[float]:
        hits = sum(counts(row, one) for row, one in enumerate(found[name]))
        return [round(value, 4) for value in (hits / n, *wilson(hits, n))]

    def against(statistic: str) -> dict[str, float]:
        quiet = [one[statistic] for one in found[CLEAN]]
        return {
            name: round(auroc(quiet, [one[statistic] for one in found[name]]), 4)
            for name in found
            if name != CLEAN
        }

    purifies = bundle.settings[setting].dynamics.kind is not None
    calibrated = setting in bundle.shifts
    return {
        "setting": setting,
        "n": n,
        "ms": round(1e3 * seconds(bundle, engine, datasets.to_float(seen.images[CLEAN][:1]), setting), 1),
        "kept": {name: share(name, lambda row, one: one["predicted"] == labels[row]) for name in found},
        "flagged": {name: share(name, lambda row, one: one["flagged"]) for name in found},
        "shifted": {name: share(name, lambda row, one: one["shifted"]) for name in found}
        if calibrated
        else None,
        "auroc": {"norm": against("score"), **({"shift": against("shift")} if purifies else {})},
    }


@torch.inference_mode()
def seconds(bundle: Bundle, engine: LocalEngine, image: Tensor, setting: str) -> float:
    """Of one answer to one image [1, C, H, W], median of REPEATS: score norm, bare prediction and chains."""
    network = bundle.calibration.network
    times = []
    for repeat in range(REPEATS + 1):
        started = time.perf_counter()
        score_norms(image, bundle.scores[network])
        bundle.classifier(image)
        engine.answer(image, [repeat], bundle.settings[setting], torch.zeros(1, dtype=torch.bool))
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first one warms up
