"""From a decoded image to a job for the engine, and from what the engine found to what a client is told.

Front ends that run an engine share this: TorchServe's handler, and the door's engine in the process.
"""

from __future__ import annotations

from typing import Any

from metastable import noise
from metastable.bundle import Bundle
from metastable.engine.inspection import Raw
from metastable.engine.job import Answer, Job
from metastable.engine.reply import reply
from metastable.engine.verdict import verdict_of
from metastable.images import DecodedImage
from metastable.serving.metrics import Counted, Metrics
from metastable.serving.options import RequestOptions


def job_of(
    bundle: Bundle, id: str, image: DecodedImage, options: RequestOptions, raw: Raw, deadline: float | None
) -> Job:
    """The job of an image that was looked at; `deadline` is on the engine's clock."""
    return Job(
        id,
        image.pixels,
        bundle.settings[options.setting],
        noise.secret_seed() if options.seed is None else options.seed,
        flagged=raw.flagged,
        deadline=deadline,
    )


def told(
    bundle: Bundle,
    answer: Answer,
    raw: Raw,
    image: DecodedImage,
    options: RequestOptions,
    *,
    runner: str,
    metrics: Metrics | None,
) -> dict[str, Any]:
    """What a client is told of an image, ready for JSON; counted, unless `metrics` is None.

    Raises EngineFailure for an anomaly score that is not a finite number.
    """
    verdict = verdict_of(bundle, answer, raw)
    if metrics is not None:
        metrics.verdict(
            Counted(
                setting=verdict.setting,
                chains=verdict.chains,
                steps=verdict.steps,
                score=verdict.score,
                flagged=verdict.flagged,
                label_changed=verdict.label != verdict.unpurified,
                capped=answer.capped,
                late=verdict.late,
                redrawn=answer.redrawn,
            )
        )
    return reply(bundle, verdict, top_k=options.top_k, image=image) | {"runner": runner}


def milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    """Times as a client is told them."""
    return {stage: round(1e3 * spent, 3) for stage, spent in seconds.items()}
