"""What measurements share: outcomes as JSON lines that an interrupted run goes on from, and the judge."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metastable.anomaly import prediction_shift, score_norms
from metastable.bundle import Bundle
from metastable.engine.local import LocalEngine

Outcome = dict[str, Any]


def read_outcomes(path: Path) -> list[Outcome]:
    """The complete lines of an outcomes file (an interrupted run may leave half a line at the end)."""
    if not path.exists():
        return []
    text = path.read_text()
    whole, _, half = text.rpartition("\n")
    if half:
        path.write_text(whole + "\n" if whole else "")
    return [json.loads(line) for line in whole.splitlines()]


def unnoticed(outcome: Outcome) -> bool:
    """Whether no statistic flags it; outcomes of older releases have the score norm only."""
    return not (outcome["flagged"] or outcome.get("shifted"))


@torch.inference_mode()
def judge(
    bundle: Bundle, engine: LocalEngine, images: Tensor, norms: Tensor, seeds: Sequence[int], setting: str
) -> list[Outcome]:
    """What a server would answer to images [N, C, H, W], one outcome each.

    `flagged` is by the score norm, `shifted` by the prediction shift (None where the setting has no
    threshold of it); `purified_score` is the score norm of the mean purified image, which a server does not
    compute.

    Args:
        norms: the score norms of the raw images, [N].
        seeds: of the chains, one an image.
    """
    calibration = bundle.calibration
    started = time.perf_counter()
    flagged = calibration.flags(norms)
    home = next(bundle.networks[calibration.network].parameters()).device
    bare = bundle.classifier(images.to(home)).float().softmax(1).cpu()
    limit = bundle.shifts.get(setting)
    answers = engine.answer(images, seeds, bundle.settings[setting], flagged)
    each_ms = 1e3 * (time.perf_counter() - started) / len(images)
    purified = torch.cat([answer.result.purified for answer in answers])
    left = score_norms(purified.to(home), bundle.scores[calibration.network]).cpu()
    shifts = prediction_shift(bare, torch.cat([answer.result.probabilities for answer in answers]).cpu())
    return [
        {
            "predicted": answer.decision.label,
            "score": float(norms[row]),
            "flagged": bool(flagged[row]),
            "shift": float(shifts[row]),
            "shifted": None if limit is None else bool(limit.flags(shifts[row])),
            "purified_score": float(left[row]),
            "chains": answer.result.outputs.shape[1],
            "decided": answer.decision.decided,
            "steps": round(float(answer.result.steps.float().mean()), 2),
            "ms": round(each_ms, 2),
        }
        for row, answer in enumerate(answers)
    ]
