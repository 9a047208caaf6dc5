"""Milliseconds of one image at a time: detection, purification and classification, no server."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metastable import noise
from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.defense import defend
from metastable.errors import DataError


def measure(bundle: Bundle, images: Tensor, names: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    """Median and 90th percentile over `rounds` passes of images [N, C, H, W], settings interleaved."""
    if bundle.anomaly is None:
        raise DataError("the bundle has no anomaly calibration: run the calibrate command first")
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in tqdm(range(rounds + 1), desc="rounds", mininterval=2):
        for image in images:
            for name in names:
                started = time.perf_counter()
                _answer(bundle, image[None], name)
                if turn:  # the first round warms up
                    times[name].append(1e3 * (time.perf_counter() - started))
    return [
        {
            "setting": name,
            "chains": bundle.settings[name].chains,
            "steps": bundle.settings[name].steps,
            "n": len(values),
            "median_ms": round(float(np.median(values)), 1),
            "p90_ms": round(float(np.quantile(values, 0.9)), 1),
        }
        for name, values in times.items()
    ]


@torch.inference_mode()
def _answer(bundle: Bundle, image: Tensor, name: str) -> None:
    assert bundle.anomaly is not None
    flagged = bundle.anomaly.flags(score_norms(image, bundle.scores[bundle.anomaly.network]))
    defend(
        image,
        [noise.secret_seed()],
        bundle.settings[name],
        classifier=bundle.classifier,
        scores=bundle.scores,
        flagged=flagged,
    )
