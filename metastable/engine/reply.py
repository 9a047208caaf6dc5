"""The JSON body of a verdict: of the server, and of `metastable ask` without one."""

from __future__ import annotations

from typing import Any

from metastable.bundle import Bundle
from metastable.engine.verdict import Verdict
from metastable.images import DecodedImage


def reply(bundle: Bundle, verdict: Verdict, *, top_k: int, image: DecodedImage) -> dict[str, Any]:
    """What is said of one image; docs/http-api.md explains every field.

    Args:
        top_k: how many classes are listed.
    """
    anomaly, setting = bundle.anomaly, bundle.settings[verdict.setting]
    assert anomaly is not None, "callers check this at their start"
    shift = bundle.shifts.get(setting.name)
    return {
        "label": verdict.label,
        "class": verdict.class_name,
        "top": [
            {"label": label, "class": name, "probability": round(probability, 6)}
            for label, name, probability in verdict.top(top_k)
        ],
        "margin": {
            "value": round(verdict.margin, 6),
            "standard_error": _rounded(verdict.standard_error),
            "of": setting.average,
            "runner_up": verdict.runner_up,
        },
        "setting": setting.name,
        "chains": verdict.chains,
        "steps": round(verdict.steps, 2),
        "decided": verdict.decided,
        "delta": setting.delta,
        "late": verdict.late,
        "unpurified": {"label": verdict.unpurified, "class": verdict.unpurified_name},
        "anomaly": {
            "score": round(verdict.score, 6),
            "threshold": round(verdict.threshold, 6),
            "false_positive_rate": anomaly.false_positive_rate,
            "flagged": verdict.flagged,
            "shift": {
                "value": round(verdict.shift, 6),
                "threshold": _rounded(verdict.shift_threshold),
                "false_positive_rate": None if shift is None else shift.false_positive_rate,
                "flagged": verdict.shifted,
            },
        },
        "image": of_image(image),
        "model": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest},
    }


def of_image(image: DecodedImage) -> dict[str, Any]:
    """What is said of what was sent."""
    return {
        "format": image.format,
        "original_size": list(image.original_size),
        "resized": image.resized,
        "notes": list(image.notes),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
