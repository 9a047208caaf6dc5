"""Do quantised and low-precision runners give the labels of float32, chain for chain?

Equal seeds, equal numbers of chains, no early deciding: the only difference is the runner.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.datasets import ImageSet, to_float
from metastable.defense import begin, viewed
from metastable.engine.runners import Batch, Runner
from metastable.evaluation.stats import wilson
from metastable.settings import Setting

AT_ONCE = 4  # images


def measure(
    bundle: Bundle, runners: Mapping[str, Runner], reference: str, settings: Mapping[str, int], test: ImageSet
) -> list[dict[str, Any]]:
    """Rows of each setting and runner, the one called `reference` first.

    Args:
        settings: chains by the name of a setting of the bundle.
        test: images and labels.

    Raises BundleError if the bundle has no anomaly calibration, which chooses the noise.
    """
    calibration, images = bundle.calibration, to_float(test.images)
    # The flags of one runner for all: what is compared are the chains.
    norms = score_norms(images, partial(runners[reference].score, calibration.network), batch=32)
    flagged = calibration.flags(norms)
    rows = []
    for name, chains in settings.items():
        wanted = outputs(runners[reference], bundle.settings[name], chains, images, flagged)
        labels = wanted.mean(1).argmax(1)
        for label, runner in runners.items():
            got = wanted
            if label != reference:
                got = outputs(runner, bundle.settings[name], chains, images, flagged)
            same = got.mean(1).argmax(1) == labels
            low, high = wilson(int(same.sum()), len(same))
            rows.append(
                {
                    "setting": name,
                    "chains": chains,
                    "n": len(images),
                    "runner": label,
                    "agreement": round(float(same.float().mean()), 4),
                    "low": round(low, 4),
                    "high": round(high, 4),
                    "chain_agreement": round(float((got.argmax(2) == wanted.argmax(2)).float().mean()), 4),
                    "accuracy": round(float((got.mean(1).argmax(1) == test.labels).float().mean()), 4),
                }
            )
    return rows


@torch.inference_mode()
def outputs(runner: Runner, setting: Setting, chains: int, images: Tensor, flagged: Tensor) -> Tensor:
    """Logits [N, chains, classes] of the chains of images [N, C, H, W], seeded by the image's number."""
    kind = setting.dynamics.kind
    assert kind is not None, "there are chains only where something is purified"
    found = []
    for start in tqdm(range(0, len(images), AT_ONCE), desc=f"{setting.name} {runner.name}", mininterval=2):
        part = range(start, min(start + AT_ONCE, len(images)))
        keys = [(i, chain) for i in part for chain in range(chains)]
        x = images[part.start : part.stop].repeat_interleave(chains, 0)
        flags = [bool(flagged[i]) for i, _ in keys]
        x = begin(x, keys, setting.dynamics, flags)
        batch = Batch(x, keys, [0] * len(x), [setting.dynamics.row(flag) for flag in flags])
        x, _ = runner.advance(kind, batch, setting.steps)
        seen = viewed(x, [chain for _, chain in keys], setting)
        found.append(runner.classify(seen).view(len(part), chains, -1))
    return torch.cat(found)
