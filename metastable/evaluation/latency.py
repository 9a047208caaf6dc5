"""Milliseconds of one image at a time: detection, purification and classification, no server."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from metastable import noise
from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine
from metastable.engine.runners.torch_runner import TorchRunner


def measure(bundle: Bundle, images: Tensor, names: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    """Median and 90th percentile over `rounds` passes of images [N, C, H, W], settings interleaved."""
    engine = LocalEngine(TorchRunner(bundle.networks, bundle.classifier), bundle.settings, bundle.shape)
    times: dict[str, list[float]] = {name: [] for name in names}
    chains: dict[str, list[int]] = {name: [] for name in names}
    for turn in tqdm(range(rounds + 1), desc="rounds", mininterval=2):
        for image in images:
            for name in names:
                started = time.perf_counter()
                used = _answer(bundle, engine, image[None], name)
                if turn:  # the first round warms up
                    times[name].append(1e3 * (time.perf_counter() - started))
                    chains[name].append(used)
    return [
        {
            "setting": name,
            "chains": round(float(np.mean(chains[name])), 1),
            "steps": bundle.settings[name].steps,
            "n": len(values),
            "median_ms": round(float(np.median(values)), 1),
            "p90_ms": round(float(np.quantile(values, 0.9)), 1),
        }
        for name, values in times.items()
    ]


def _answer(bundle: Bundle, engine: LocalEngine, image: Tensor, name: str) -> int:
    """Answer one image as a server would; returns the chains that it took."""
    calibration = bundle.calibration
    flagged = calibration.flags(score_norms(image, bundle.scores[calibration.network]))
    [answer] = engine.answer(image, [noise.secret_seed()], bundle.settings[name], flagged)
    return answer.result.outputs.shape[1]
