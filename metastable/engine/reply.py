"""The JSON body of a verdict: of the server, and of `metastable ask` without one."""

from __future__ import annotations

import math
from typing import Any

from metastable.bundle import Bundle
from metastable.engine.job import Answer
from metastable.images import DecodedImage


def reply(
    bundle: Bundle,
    answer: Answer,
    *,
    top_k: int,
    image: DecodedImage,
    score: float,
    flagged: bool,
    bare: int,
) -> dict[str, Any]:
    """What is said of one image; docs/http-api.md explains every field.

    Args:
        top_k: how many classes are listed.
        score: anomaly score of the image as it came, and `flagged` whether it is above the threshold.
        bare: label that the classifier gives the image as it came.

    Raises FloatingPointError for an anomaly score that is not a finite number.
    """
    if not math.isfinite(score):
        raise FloatingPointError("the anomaly score is not a finite number")
    anomaly = bundle.anomaly
    assert anomaly is not None, "callers check this at their start"
    classes, result, decision = bundle.classes, answer.result, answer.decision
    setting = answer.job.setting
    probabilities = result.probabilities[0]
    order = [int(i) for i in result.mean[0].argsort(descending=True, stable=True)]
    error = decision.standard_error
    return {
        "label": decision.label,
        "class": classes[decision.label],
        "top": [
            {"label": i, "class": classes[i], "probability": round(float(probabilities[i]), 6)}
            for i in order[:top_k]
        ],
        "margin": {
            "value": round(decision.margin, 6),
            "standard_error": round(error, 6) if math.isfinite(error) else None,
            "of": result.average,
            "runner_up": classes[decision.runner_up],
        },
        "setting": setting.name,
        "chains": int(result.outputs.shape[1]),
        "steps": round(float(result.steps.float().mean()), 2),
        "decided": decision.decided,
        "delta": setting.delta,
        "late": answer.late,
        "unpurified": {"label": bare, "class": classes[bare]},
        "anomaly": {
            "score": round(score, 6),
            "threshold": round(anomaly.threshold, 6),
            "false_positive_rate": anomaly.false_positive_rate,
            "flagged": flagged,
        },
        "image": {
            "format": image.format,
            "original_size": list(image.original_size),
            "resized": image.resized,
            "notes": list(image.notes),
        },
        "model": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest},
    }
