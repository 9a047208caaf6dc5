"""Natural and transfer-PGD accuracy of a bundle's settings, image by image, resumable.

The attack is PGD on the bare classifier in its l_inf ball; it does not know the defense.  Answers
come from the engine, as a server's do, deciding early where the setting says so.  Every image's
outcome is one line of `outcomes.jsonl`, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
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
from metastable.attacks.pgd import pgd
from metastable.attacks.white_box import attackable
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine
from metastable.engine.runners.torch_runner import TorchRunner
from metastable.evaluation.outcomes import Outcome, judge, read_outcomes
from metastable.evaluation.same import same_run
from metastable.evaluation.stats import auroc, wilson
from metastable.networks.onnx_gradient import IMAGES


@dataclass(frozen=True)
class TableConfig:
    """What a table depends on; kept beside its outcomes so that two runs cannot mix."""

    settings: tuple[str, ...]
    n: int
    skip: int = 0
    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 20
    seed: int = 0
    bundle: str = ""
    data: str = ""


def measure(bundle: Bundle, test: datasets.ImageSet, config: TableConfig, out: Path) -> dict[str, Any]:
    """Run what is missing of the table in folder `out` and return its summary."""
    score = bundle.scores[bundle.calibration.network]
    out.mkdir(parents=True, exist_ok=True)
    same_run(out / "table-config.json", config)
    images = datasets.to_float(test.images)
    kinds = {"natural": images, "pgd": _attacked(bundle, images, test.labels, config, out)}
    norms = {kind: score_norms(x, score) for kind, x in kinds.items()}
    path = out / "outcomes.jsonl"
    done = {(o["setting"], o["kind"], o["index"]) for o in read_outcomes(path)}
    jobs = [(s, k, i) for s in config.settings for k in kinds for i in range(len(test))]
    left = [job for job in jobs if job not in done]
    engine = LocalEngine(TorchRunner(bundle.networks, bundle.classifier), bundle.settings, bundle.shape)
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(left), desc="images", mininterval=2)
    with path.open("a") as file:
        for name, kind, indices in _batches(left, 16):
            seeds = [_seed(config.seed, kind, i) for i in indices]
            found = judge(bundle, engine, kinds[kind][indices], norms[kind][indices], seeds, name)
            for index, outcome in zip(indices, found, strict=True):
                label = int(test.labels[index])
                line = {"setting": name, "kind": kind, "index": index, "label": label, **outcome}
                file.write(json.dumps(line) + "\n")
            file.flush()
            bar.update(len(indices))
    bar.close()
    return summarize(read_outcomes(path), config)


def summarize(outcomes: list[Outcome], config: TableConfig) -> dict[str, Any]:
    """Rows {setting, kind, accuracy, interval, flag_rate, ...} and the detection AUROC."""
    rows = []
    for name in config.settings:
        for kind in ("natural", "pgd"):
            these = [o for o in outcomes if o["setting"] == name and o["kind"] == kind]
            right = sum(o["label"] == o["predicted"] for o in these)
            low, high = wilson(right, len(these))
            rows.append(
                {
                    "setting": name,
                    "kind": kind,
                    "n": len(these),
                    "accuracy": round(right / len(these), 4),
                    "low": round(low, 4),
                    "high": round(high, 4),
                    "flag_rate": round(sum(o["flagged"] for o in these) / len(these), 4),
                    "chains": round(float(np.mean([o["chains"] for o in these])), 1),
                    "decided": round(sum(o["decided"] for o in these) / len(these), 4),
                    "steps": round(float(np.mean([o["steps"] for o in these])), 2),
                    "ms": round(float(np.median([o["ms"] for o in these])), 1),
                }
            )
    first = config.settings[0]
    scores = {
        kind: [o["score"] for o in outcomes if o["setting"] == first and o["kind"] == kind]
        for kind in ("natural", "pgd")
    }
    return {"rows": rows, "auroc": round(auroc(scores["natural"], scores["pgd"]), 4)}


def _attacked(
    bundle: Bundle, images: Tensor, labels: Tensor, config: TableConfig, out: Path, batch: int = 50
) -> Tensor:
    """Attacked images [N, C, H, W], made once and kept in `pgd.npy`."""
    path = out / "pgd.npy"
    if path.exists():
        return torch.from_numpy(np.load(path, allow_pickle=False))
    pieces, classifier = [], attackable(bundle, images[:IMAGES]).classifier
    for start in tqdm(range(0, len(images), batch), desc="PGD on the bare classifier", mininterval=2):
        pick = slice(start, start + batch)
        pieces.append(
            pgd(
                classifier,
                images[pick],
                labels[pick],
                eps=config.eps,
                step=config.step,
                steps=config.steps,
                seed=config.seed + start,
            )
        )
    attacked = torch.cat(pieces)
    np.save(path, attacked.numpy())
    return attacked


def _batches(jobs: list[tuple[str, str, int]], size: int) -> Iterator[tuple[str, str, list[int]]]:
    """Group jobs of one setting and kind into lists of at most `size` image indices."""
    start = 0
    while start < len(jobs):
        name, kind, _ = jobs[start]
        end = start
        while end < len(jobs) and end < start + size and jobs[end][:2] == (name, kind):
            end += 1
        yield name, kind, [index for _, _, index in jobs[start:end]]
        start = end


def _seed(seed: int, kind: str, index: int) -> int:
    """Fixed chain seeds: a table can be repeated exactly (a server's seeds are secret instead)."""
    return ((seed * 2 + (kind == "pgd")) << 32) + index
