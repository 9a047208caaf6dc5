"""What the server does with a batch of requests, in terms that know no TorchServe.

Requests of one setting run together; each request has its own outcome, and an image or option
that cannot be used harms no other.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from handlers import options as options_module
from handlers.metrics import Metrics
from handlers.options import Options, Policy
from metastable import noise
from metastable.anomaly import score_norms
from metastable.bundle import Bundle
from metastable.defense import Defended, defend
from metastable.dynamics import ScoreFunction
from metastable.errors import DeadlineExceeded, MetastableError, RequestError
from metastable.images import DecodedImage, Limits, decode
from metastable.settings import Setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One request as the front end received it."""

    id: str
    headers: Mapping[str, str]
    row: Mapping[str, object]


@dataclass(frozen=True)
class Response:
    """Status and JSON body."""

    status: int
    body: str


@dataclass
class _Job:
    """A request on its way: what was decoded, and seconds spent by stage."""

    request: Request
    options: Options
    image: DecodedImage
    received: float
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)
    score: float = math.nan
    flagged: bool = False
    bare: int = -1  # what the classifier says of the image as it came

    def expired(self, now: float) -> bool:
        limit = self.options.deadline_ms
        return limit is not None and 1e3 * (now - self.received) > limit


class Service:
    """Answers batches of requests with one bundle.

    Args:
        bundle: must carry an anomaly calibration.
        metrics: counts every outcome.
        allow_seed: whether clients may set the seed (known noise breaks the defense).
        limits: of image bytes and pixels.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        bundle: Bundle,
        metrics: Metrics,
        *,
        allow_seed: bool = False,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if bundle.anomaly is None:
            raise MetastableError("the bundle has no anomaly calibration: run the calibrate command")
        self._bundle, self._anomaly, self._metrics = bundle, bundle.anomaly, metrics
        self._limits, self._clock = limits or Limits(), clock
        self._policy = Policy(bundle.settings.names, bundle.settings.default, len(bundle.classes), allow_seed)
        metrics.model(bundle.name, bundle.version, bundle.digest)

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """One response a request, in order.  Never raises for what a request contains."""
        received = self._clock()
        self._metrics.batch(len(requests))
        responses: dict[int, Response] = {}
        jobs: dict[int, _Job] = {}
        for index, request in enumerate(requests):
            try:
                jobs[index] = self._admit(request, received)
            except Exception as error:
                responses[index] = self._refuse(request, "none given", received, error)
        # Cheap settings first: nobody waits for work that is longer than their own.
        for name in sorted({j.options.setting for j in jobs.values()}, key=self._price):
            group = {i: j for i, j in jobs.items() if j.options.setting == name}
            responses |= self._run(group, self._bundle.settings[name])
        return [responses[index] for index in range(len(requests))]

    def _price(self, name: str) -> int:
        setting = self._bundle.settings[name]
        return setting.chains * setting.steps

    def _admit(self, request: Request, received: float) -> _Job:
        started = self._clock()
        data, fields = options_module.split_body(request.row)
        chosen = options_module.parse(request.headers, fields, self._policy)
        channels, size, _ = self._bundle.shape
        image = decode(data, size=size, channels=channels, limits=self._limits)
        seed = noise.secret_seed() if chosen.seed is None else chosen.seed
        job = _Job(request, chosen, image, received, seed)
        job.seconds["decode"] = self._clock() - started
        return job

    def _run(self, group: dict[int, _Job], setting: Setting) -> dict[int, Response]:
        responses: dict[int, Response] = {}
        now = self._clock()
        alive = {}
        for index, job in group.items():
            job.seconds["queue"] = max(0.0, now - job.received - job.seconds["decode"])
            if job.expired(now):
                responses[index] = self._fail(job, _late(job))
            else:
                alive[index] = job
        if not alive:
            return responses
        jobs = list(alive.values())
        try:
            result = self._defend(jobs, setting)
        except Exception as error:
            return responses | {index: self._fail(job, error) for index, job in alive.items()}
        for row, (index, job) in enumerate(alive.items()):
            if job.expired(self._clock()):
                responses[index] = self._fail(job, _late(job))
            else:
                responses[index] = self._succeed(job, setting, result, row)
        return responses

    def _defend(self, jobs: list[_Job], setting: Setting) -> Defended:
        images = torch.stack([job.image.pixels for job in jobs])
        last = self._clock()

        def spent(stage: str) -> None:
            nonlocal last
            now = self._clock()
            for job in jobs:
                job.seconds[stage] = job.seconds.get(stage, 0.0) + now - last
            last = now

        def between(stage: str, share: float) -> None:
            spent(stage)
            if share < 1 and all(job.expired(last) for job in jobs):
                raise _late(jobs[0])

        norms, bare = self._inspect(images, self._bundle.scores[self._anomaly.network])
        flagged = self._anomaly.flags(norms)
        for row, job in enumerate(jobs):
            job.score, job.flagged, job.bare = float(norms[row]), bool(flagged[row]), int(bare[row])
        spent("anomaly")
        return defend(
            images,
            [job.seed for job in jobs],
            setting,
            classifier=self._bundle.classifier,
            scores=self._bundle.scores,
            flagged=flagged,
            between=between,
        )

    @torch.inference_mode()
    def _inspect(self, images: Tensor, score: ScoreFunction) -> tuple[Tensor, Tensor]:
        """Score norms [N] and the bare classifier's labels [N] of the raw images."""
        return score_norms(images, score), self._bundle.classifier(images).argmax(1)

    def _succeed(self, job: _Job, setting: Setting, result: Defended, row: int) -> Response:
        body = self._verdict(job, setting, result, row)
        total = self._clock() - job.received
        body["timings_ms"] = {k: round(1e3 * v, 3) for k, v in {**job.seconds, "total": total}.items()}
        for stage, seconds in job.seconds.items():
            self._metrics.stage(stage, seconds)
        self._metrics.verdict(
            setting.name,
            chains=body["chains"],
            steps=body["steps"],
            score=job.score,
            flagged=job.flagged,
            label_changed=body["label"] != job.bare,
        )
        self._metrics.request(setting.name, "ok", total)
        return Response(200, json.dumps(body, allow_nan=False))

    def _verdict(self, job: _Job, setting: Setting, result: Defended, row: int) -> dict[str, Any]:
        classes = self._bundle.classes
        probabilities = result.probabilities[row]
        order = [int(i) for i in result.mean[row].argsort(descending=True)]
        margin, error = (float(value[row]) for value in result.margins())
        if not all(map(math.isfinite, (margin, job.score))):
            raise FloatingPointError("the defense returned a value that is not a finite number")
        return {
            "label": order[0],
            "class": classes[order[0]],
            "top": [
                {"label": i, "class": classes[i], "probability": round(float(probabilities[i]), 6)}
                for i in order[: job.options.top_k]
            ],
            "margin": {
                "value": round(margin, 6),
                "standard_error": round(error, 6) if math.isfinite(error) else None,
                "of": result.average,
                "runner_up": classes[order[1]],
            },
            "setting": setting.name,
            "chains": int(result.outputs.shape[1]),
            "steps": round(float(result.steps[row].float().mean()), 2),
            "unpurified": {"label": job.bare, "class": classes[job.bare]},
            "anomaly": {
                "score": round(job.score, 6),
                "threshold": round(self._anomaly.threshold, 6),
                "false_positive_rate": self._anomaly.false_positive_rate,
                "flagged": job.flagged,
            },
            "image": {
                "format": job.image.format,
                "original_size": list(job.image.original_size),
                "resized": job.image.resized,
                "notes": list(job.image.notes),
            },
            "request_id": job.request.id,
            "model": {
                "name": self._bundle.name,
                "version": self._bundle.version,
                "digest": self._bundle.digest,
            },
        }

    def _fail(self, job: _Job, error: Exception) -> Response:
        return self._refuse(job.request, job.options.setting, job.received, error)

    def _refuse(self, request: Request, setting: str, received: float, error: Exception) -> Response:
        """A JSON error; what went wrong inside is logged by type and never told to the client."""
        if isinstance(error, RequestError):
            status, code, message = error.status, error.code, str(error)
        else:
            log.error("request failed: %s", type(error).__name__, exc_info=error)
            status, code = MetastableError.status, MetastableError.code
            message = "something went wrong inside the server: try again, or tell its operator the request id"
        self._metrics.request(setting, code, self._clock() - received)
        body = {"error": {"code": code, "message": message}, "request_id": request.id}
        return Response(status, json.dumps(body))


def _late(job: _Job) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"no answer within deadline_ms = {job.options.deadline_ms}: allow more, or choose a cheaper setting"
    )
