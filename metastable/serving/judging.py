"""From a decoded image to a job for the engine, and from what the engine found to what a client is told.

Front ends that run an engine share this: TorchServe's handler, and the door's engine in the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metastable import noise
from metastable.bundle import Bundle
from metastable.engine.engine import Engine
from metastable.engine.inspection import Raw
from metastable.engine.job import Answer, Job
from metastable.engine.reply import reply
from metastable.engine.timeline import Timeline
from metastable.engine.verdict import Verdict, verdict_of
from metastable.errors import RequestError
from metastable.images import DecodedImage
from metastable.serving.backends.base import Served
from metastable.serving.control import refusal
from metastable.serving.metrics import SCORE_NORM, SHIFT, Counted, Metrics
from metastable.serving.options import RequestOptions
from metastable.settings import Setting


def introduce(bundle: Bundle, engine: Engine, runner: str, metrics: Metrics) -> None:
    """Let the metrics name what is served, say what is expected of it, and follow the engine's segments.

    Raises BundleError for a bundle without an anomaly calibration.
    """
    name(bundle, runner, metrics)
    metrics.capacity(engine.limits.backlog, engine.chains.slots)
    engine.watch = metrics.segment


def name(bundle: Bundle, runner: str, metrics: Metrics) -> None:
    """The part of `introduce` that needs no engine."""
    metrics.model(bundle.name, bundle.version, bundle.digest, runner)
    metrics.calibrated(bundle.version, SCORE_NORM, "", bundle.calibration)
    for setting, shift in bundle.shifts.items():
        metrics.calibrated(bundle.version, SHIFT, setting, shift)


def served_of(bundle: Bundle, *, allow_seed: bool, runner: str) -> Served:
    """What is said of a bundle that answers."""
    return Served(
        name=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        shape=bundle.shape,
        fit=bundle.fit,
        classes=tuple(bundle.classes),
        settings=bundle.settings.names,
        default=bundle.settings.default,
        allow_seed=allow_seed,
        runner=runner,
    )


def state_of(engine: Engine, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Backlog in seconds, permits out, and of each setting the price and why it would be refused now."""
    found = {}
    for name, setting in settings.items():
        refused = None
        try:
            engine.admit(setting).release()
        except RequestError as error:
            refused = refusal(error)
        found[name] = {"price": engine.admission.price(setting), "refused": refused}
    return {"backlog": engine.backlog, "out": engine.admission.out, "settings": found}


def job_of(
    bundle: Bundle,
    id: str,
    image: DecodedImage,
    options: RequestOptions,
    raw: Raw,
    deadline: float | None,
    timeline: Timeline | None = None,
) -> Job:
    """The job of an image that was looked at; `deadline` is on the engine's clock."""
    return Job(
        id,
        image.pixels,
        bundle.settings[options.setting],
        noise.secret_seed() if options.seed is None else options.seed,
        flagged=raw.flagged,
        deadline=deadline,
        timeline=timeline,
    )


def told(
    bundle: Bundle,
    answer: Answer,
    raw: Raw,
    image: DecodedImage,
    options: RequestOptions,
    *,
    runner: str,
) -> tuple[dict[str, Any], Counted]:
    """What a client is told of an image, ready for JSON, and what metrics count of it.

    Raises EngineFailure for an anomaly score that is not a finite number.
    """
    verdict = verdict_of(bundle, answer, raw)
    body = reply(bundle, verdict, top_k=options.top_k, image=image) | {"runner": runner}
    return body, _counted(bundle, verdict, answer)


def _counted(bundle: Bundle, verdict: Verdict, answer: Answer) -> Counted:
    setting = answer.job.setting
    found = {
        SCORE_NORM: bundle.calibration.rank(verdict.score),
        SHIFT: None if (limit := bundle.shifts.get(setting.name)) is None else limit.rank(verdict.shift),
    }
    flags = {SCORE_NORM: verdict.flagged, SHIFT: verdict.shifted}
    return Counted(
        setting=setting.name,
        chains=verdict.chains,
        steps=verdict.steps,
        score=verdict.score,
        shift=verdict.shift,
        ranks={statistic: rank for statistic, rank in found.items() if rank is not None},
        flagged=frozenset(statistic for statistic, flag in flags.items() if flag),
        label_changed=verdict.label != verdict.unpurified,
        early=verdict.decided and not verdict.late and verdict.chains < setting.most_chains,
        capped=answer.capped,
        late=verdict.late,
    )


def milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    """Times as a client is told them."""
    return {stage: round(1e3 * spent, 3) for stage, spent in seconds.items()}
