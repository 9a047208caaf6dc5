"""What the server does with requests, in terms that know no TorchServe.

The front end calls `step` again and again with every request that has no response yet.  A step
admits the requests that are new, advances the engine by one segment, and responds to those that
have ended, each with its own outcome: an image or option that cannot be used harms no other.

A new request's options are read, then the engine admits it or refuses, and only then its image is decoded
and looked at.  Where many come at once, or images are large, some wait for that until the next steps, so that
those under way go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from handlers.door import Claim, Door
from handlers.requests import Held, New, Request, Response
from metastable.bundle import Bundle
from metastable.engine import assembly
from metastable.engine.admission import Permit
from metastable.engine.engine import LATE, EngineLimits
from metastable.engine.inspection import Inspector
from metastable.engine.job import Answer, Job
from metastable.engine.runners import Runner
from metastable.errors import Cancelled, DeadlineExceeded, MetastableError, RequestError
from metastable.images import ImageLimits, decode
from metastable.pixels import at_most
from metastable.serving import judging
from metastable.serving import options as options_module
from metastable.serving.control import UNCOUNTED
from metastable.serving.metrics import Metrics
from metastable.serving.options import Allowed, RequestOptions
from metastable.serving.refusals import Refusal
from metastable.settings import Setting

ARRIVALS = 0.1  # seconds of a step that new requests may take; the rest wait for the next one
GIVEN_UP = "the request was given up"
LOOKS, LOOK_PIXELS = 32, 2**15
"""Images that are looked at together, and their pixels in all, if it is more than one."""


class Service:
    """Answers requests with one bundle on one runner.

    Args:
        bundle: must carry an anomaly calibration.
        metrics: counts every outcome.
        runner: made for this bundle.
        allow_seed: whether clients may set the seed (known noise breaks the defense).
        limits: of image bytes and pixels.
        engine_limits: of the work at a time and the work that may wait.
        sizes: of the batches whose cost is measured; the largest is the largest that is run.  None
            takes what suits the runner.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        bundle: Bundle,
        metrics: Metrics,
        runner: Runner,
        *,
        allow_seed: bool = False,
        limits: ImageLimits | None = None,
        engine_limits: EngineLimits | None = None,
        sizes: Sequence[int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._bundle, self._metrics, self._runner = bundle, metrics, runner
        self._inspector = Inspector(bundle, runner)
        self._limits, self._clock = limits or ImageLimits(), clock
        self._policy = Allowed(
            bundle.settings.names, bundle.settings.default, len(bundle.classes), allow_seed
        )
        self._looks = at_most(LOOKS, bundle.shape, LOOK_PIXELS)
        self._engine = assembly.engine_for(
            runner,
            bundle.settings.by_name.values(),
            bundle.shape,
            engine_limits,
            sizes=sizes,
            clock=clock,
            look=self._inspector,
        )
        self._new: dict[str, New] = {}
        self._held: dict[str, Held] = {}
        self._door: Door | None = None
        judging.introduce(bundle, self._engine, runner.name, metrics)

    def open(self, window: int) -> Door:
        """What it keeps for the door, whose headers count from now on: nobody else may reach the service.

        Args:
            window: requests that TorchServe may hold, those in its queue among them.
        """
        self._door = Door(
            self._engine,
            self._bundle,
            self._policy.allow_seed,
            self._runner.name,
            window,
            looked=self._stands,
        )
        return self._door

    def step(self, requests: Sequence[Request]) -> list[Response | None]:
        """One segment of work: a response for every request that has ended, in order, else None.

        Requests that were here before and are missing now are given up.  Never raises for what a
        request contains.
        """
        received = self._clock()
        # First, so that nobody is refused for the work of those who left.
        self._let_go({request.id for request in requests})
        known = self._held.keys() | self._new.keys()
        responses = self._read([r for r in requests if r.id not in known], received)
        responses |= self._give_up()
        responses |= self._admit_new(received + ARRIVALS)
        self._engine.advance()
        for outcome in self._engine.collect():
            held = self._held.pop(outcome.job.id)
            try:
                if not isinstance(outcome, Answer):
                    raise outcome.error
                responses[held.id] = self._succeed(held, outcome)
            except Exception as error:
                responses[held.id] = self._refuse(held.id, held.options.setting, held.received, error)
        self._stands()
        return [responses.get(request.id) for request in requests]

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Step until every request has its response, as a server without continuous batching must."""
        found: dict[str, Response] = {}
        while waiting := [request for request in requests if request.id not in found]:
            for request, response in zip(waiting, self.step(waiting), strict=True):
                if response is not None:
                    found[request.id] = response
        return [found[request.id] for request in requests]

    def _stands(self) -> None:
        """Let the metrics say how much there is to do."""
        self._metrics.engine(self._engine.backlog, self._engine.chains.used)

    def _let_go(self, here: set[str]) -> None:
        for gone in set(self._held) - here:
            self._engine.cancel(gone)
        for gone in set(self._new) - here:
            self._drop(self._new[gone], Cancelled(GIVEN_UP))

    def _give_up(self) -> dict[str, Response]:
        """End what the door gave up, but TorchServe still waits for; the responses to those that are new."""
        responses: dict[str, Response] = {}
        gone = self._door.given_up() if self._door is not None else frozenset[str]()
        for held in self._held.values() if gone else ():
            if held.job in gone:
                self._engine.cancel(held.id)
        for new in [new for new in self._new.values() if gone and new.claim.job in gone]:
            responses[new.id] = self._drop(new, Cancelled(GIVEN_UP))
        return responses

    def _drop(self, new: New, error: RequestError) -> Response:
        """The response to a request that ends before its image is decoded."""
        del self._new[new.id]
        new.claim.release()
        return self._refuse(new.id, new.options.setting, new.received, error)

    def _read(self, requests: Sequence[Request], received: float) -> dict[str, Response]:
        """Read the options of requests that are new; the responses to those that are at fault."""
        responses = {}
        for request in requests:
            claim = Claim(request.headers) if self._door is None else self._door.claim(request.headers)
            try:
                data, fields = options_module.split_body(request.row)
                chosen = options_module.parse(claim.headers, fields, self._policy)
                self._new[request.id] = New(request.id, data, chosen, received - claim.waited, claim)
            except Exception as error:
                claim.release()
                responses[request.id] = self._refuse(request.id, "none given", received, error)
        return responses

    def _admit_new(self, ends: float) -> dict[str, Response]:
        """Admit new requests until `ends`, at least one; the responses to those that end with that."""
        responses = {}
        for late in [new for new in self._new.values() if new.deadline and new.deadline <= self._clock()]:
            responses[late.id] = self._drop(late, DeadlineExceeded(LATE))
        while self._new:
            held: list[Held] = []
            while self._new and len(held) < self._looks:
                new = self._new.pop(next(iter(self._new)))
                try:
                    held.append(self._decode(new, self._permit(new)))
                except Exception as error:
                    responses[new.id] = self._refuse(new.id, new.options.setting, new.received, error)
                if self._clock() >= ends:
                    break
            if held:
                responses |= self._submit(held)
            if self._clock() >= ends:
                break
        return responses

    def _submit(self, new: list[Held]) -> dict[str, Response]:
        """Look at images and hand them to the engine; the responses to those where that fails."""
        responses = {}
        try:
            self._inspect(new)
        except Exception as error:
            # One error object each: what is logged of one request must not grow with the others.
            for held in new:
                held.permit.release()
                own = MetastableError("the raw image could not be judged")
                own.__cause__ = error
                responses[held.id] = self._refuse(held.id, held.options.setting, held.received, own)
            return responses
        for held in new:
            try:
                self._engine.submit(self._job(held), held.permit)
                self._held[held.id] = held
            except Exception as error:
                held.permit.release()  # which `submit` does, and `_job` does not
                responses[held.id] = self._refuse(held.id, held.options.setting, held.received, error)
        return responses

    def _permit(self, new: New) -> Permit:
        """The one that the door got for it, if it is for this setting, else another one."""
        setting = self._setting(new.options)
        return new.claim.permit_for(setting) or self._engine.admit(setting)

    def _setting(self, options: RequestOptions) -> Setting:
        return self._bundle.settings[options.setting]

    def _decode(self, new: New, permit: Permit) -> Held:
        started = self._clock()
        channels, *size = self._bundle.shape
        try:
            image = decode(
                new.data,
                size=(size[0], size[1]),
                channels=channels,
                fit=self._bundle.fit,
                limits=self._limits,
            )
        except Exception:
            permit.release()
            raise
        decoding = {"decode": self._clock() - started}
        return Held(new.id, new.options, permit, new.claim.job, image, new.received, new.deadline, decoding)

    def _inspect(self, new: list[Held]) -> None:
        started = self._clock()
        looked = self._inspector(torch.stack([held.image.pixels for held in new]))
        each = (self._clock() - started) / len(new)
        for held, raw in zip(new, looked, strict=True):
            held.raw, held.seconds["anomaly"] = raw, each
            held.permit.charge(each)
        self._engine.looked(len(new), each * len(new))

    def _job(self, held: Held) -> Job:
        return judging.job_of(
            self._bundle, held.id, held.image, held.options, held.raw, deadline=held.deadline
        )

    def _succeed(self, held: Held, answer: Answer) -> Response:
        body, counted = judging.told(
            self._bundle, answer, held.raw, held.image, held.options, runner=self._runner.name
        )
        if not (held.job or "").startswith(UNCOUNTED):
            self._metrics.verdict(counted)
        total = self._clock() - held.received
        seconds = held.seconds | answer.seconds
        self._count(held.options.setting, "ok", total, seconds)
        times = judging.milliseconds({**seconds, "total": total})
        return Response(200, json.dumps(body | {"request_id": held.id, "timings_ms": times}, allow_nan=False))

    def _refuse(self, id: str, setting: str, received: float, error: Exception) -> Response:
        """A JSON error; what went wrong inside is logged by type and never told to the client."""
        refusal = Refusal.of(error)
        self._count(setting, refusal.code, self._clock() - received, {})
        return Response(refusal.status, json.dumps(refusal.content(id)), refusal.headers)

    def _count(self, setting: str, outcome: str, total: float, seconds: Mapping[str, float]) -> None:
        """Behind the door nothing: it counts requests itself, and theirs are the same numbers."""
        if self._door is not None:
            return
        for stage, spent in seconds.items():
            self._metrics.stage(stage, spent)
        self._metrics.request(setting, outcome, total)
