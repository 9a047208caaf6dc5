"""The engine: a state machine that advances the chains of many jobs together.

    permit = engine.admit(setting)  # or it says when to try again
    engine.submit(job, permit)
    engine.advance()                # one segment: a batch of chains, a few steps, their classification
    engine.collect()                # what has ended since the last look

It has no thread and no clock of its own: whoever drives it calls `advance` again and again, from
one thread.  Every job that `submit` took ends in exactly one outcome.  `admit` is for any thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from metastable import noise, stopping
from metastable.dynamics.base import Kind
from metastable.engine.admission import Admission, Permit
from metastable.engine.chains import REDRAWN, Chains, broken
from metastable.engine.costs import CLASSIFY, LOOK, Costs
from metastable.engine.job import ActiveJob, Answer, Failure, Job, Outcome, Segment
from metastable.engine.policy import Policy
from metastable.engine.runners import Runner
from metastable.errors import Cancelled, DeadlineExceeded, Draining, MetastableError
from metastable.settings import Setting

LATE = "the deadline passed before there was an answer: allow more time, or choose a cheaper setting"


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine does at a time, and takes on.

    Attributes:
        segment: seconds that one call of `advance` aims at; a step of one chain may take longer.
        slots: chains that can be under way, and `state_bytes` what their states may take in memory: of large
            images there are fewer.
        backlog: seconds of expected work that a job may have before it; one that would have more is refused.
        jobs: jobs that may be admitted and not ended, and `few` those of them that are admitted whatever they
            cost.
    """

    segment: float = 0.03
    slots: int = 1024
    state_bytes: int = 2**28
    backlog: float = 4.0
    jobs: int = 1024
    few: int = 4

    def slots_of(self, shape: tuple[int, int, int]) -> int:
        """Chains of images of this shape that can be under way, at least one."""
        return max(1, min(self.slots, self.state_bytes // (math.prod(shape) * torch.float32.itemsize)))


@dataclass
class Counters:
    """What the engine did since it was made."""

    segments: int = 0
    failures: int = 0
    capped: int = 0


class Engine:
    """See the module.

    Args:
        runner: advances and classifies.
        costs: the runner's cost curve (`costs.measure`), for every kind that jobs will have.
        shape: (C, H, W) of images.
        clock: seconds, monotonic; deadlines are on it.

    Attributes:
        watch: is told of every segment, on the thread that advances.
    """

    def __init__(
        self,
        runner: Runner,
        costs: Costs,
        shape: tuple[int, int, int],
        clock: Callable[[], float],
        limits: EngineLimits | None = None,
    ) -> None:
        self._costs, self._shape, self._clock = costs, shape, clock
        self.limits = limits or EngineLimits()
        self.chains = Chains(runner, costs, self.limits.slots_of(shape), shape, clock)
        self.admission = Admission(
            costs, backlog=self.limits.backlog, jobs=self.limits.jobs, few=self.limits.few
        )
        self._held: dict[str, ActiveJob] = {}
        self._ended: list[Outcome] = []
        self._orders = 0
        self._policy = Policy()
        self._drain_by: float | None = None
        self.counters = Counters()
        self.watch: Callable[[Segment], None] = lambda segment: None

    # --- what callers do -----------------------------------------------------------------------

    def admit(self, setting: Setting) -> Permit:
        """Room for one job of this setting, at once and before anything is paid for it; from any thread.

        Raises what `Admission.admit` raises.
        """
        return self.admission.admit(setting)

    def submit(self, job: Job, permit: Permit | None = None) -> None:
        """Take a job on, with a permit of its own or the one that was given for it.

        The permit is the job's from now on, and comes back when that ends, or now if this raises.

        Raises:
            ValueError: a job of this id is held, the image has another shape, the seed or the number of its
                first chain is none, or the permit is not for this job.
            Overloaded, Draining: of `admit`; Draining too for a permit from before the engine drained.
        """
        permit = permit or self.admit(job.setting)
        try:
            self._check(job)
            self.admission.take(permit, job.setting)
        except Exception:
            permit.release()
            raise
        active = ActiveJob(job, self._orders, self._clock(), permit, 0)
        self._orders += 1
        self._held[job.id] = active
        self._next_round(active, None)

    def looked(self, images: int, seconds: float) -> None:
        """What a look at so many images took: prices follow it, as they follow steps."""
        if LOOK in self._costs:
            self._costs.observe(LOOK, images, seconds)

    def cancel(self, id: str) -> bool:
        """End a job as cancelled, if it is held; its chains leave before the next segment."""
        if (active := self._held.get(id)) is None:
            return False
        self._fail(active, Cancelled("the request was given up"))
        return True

    def drain(self, seconds: float) -> None:
        """Take no more jobs; those still held after `seconds` get the best answer so far, or fail."""
        self.admission.drain()
        self._drain_by = self._clock() + seconds

    def collect(self) -> list[Outcome]:
        """The outcomes since the last call."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def backlog(self) -> float:
        """Seconds of expected work that is left to do for all who were admitted."""
        return self.admission.backlog

    @property
    def held(self) -> int:
        """Jobs without an outcome."""
        return len(self._held)

    # --- one segment ---------------------------------------------------------------------------

    @torch.inference_mode()
    def advance(self) -> bool:
        """Run one segment; False if there was nothing to do.

        What goes wrong in a batch fails the jobs that have chains in it, and no others.
        """
        self._expire()
        if not self._held:
            return False
        started = self._clock()
        held, redrawn = len(self._held), self.chains.redrawn
        slots, kind, width = self._choose()
        chains = len(slots)
        self.counters.segments += 1
        try:
            if kind is not None:
                slots, bad = self.chains.walk(kind, slots, self.limits.segment)
                self._fail_all(bad, "a chain left the numbers twice: a network or a setting is broken")
                slots = [slot for slot in slots if self.chains.owners([slot])]
            if slots:
                self._fail_all(self.chains.classify(slots), "the classifier returned what is not a number")
        except Exception as error:
            self._fail_all(self.chains.owners(slots), "a step of the engine failed", error)
        self._policy.spent(self._clock() - started)
        self.watch(Segment(held, chains, width, self.chains.redrawn - redrawn))
        for active in list(self._held.values()):
            if active.wanting == 0 and not active.slots:
                began = self._clock()
                self._end_round(active)
                if (timeline := active.job.timeline) is not None:
                    timeline.add("decide", began, self._clock())
        return True

    def _expire(self) -> None:
        now = self._clock()
        stopped = self._drain_by is not None and now >= self._drain_by
        for active in list(self._held.values()):
            deadline = active.job.deadline
            if stopped or (deadline is not None and now >= deadline):
                if len(active.finished) > 1:
                    self._answer(active, len(active.finished), late=True)
                elif stopped:
                    self._fail(active, Draining("the server stopped before there was an answer"))
                else:
                    self._fail(active, DeadlineExceeded(LATE))

    def _choose(self) -> tuple[list[int], Kind | None, int]:
        """The slots of the next batch, new chains placed in them, their kind, and how many would fit."""
        ordered = self._policy.order(self._held.values())
        kind = ordered[0].kind
        same = [r for r in ordered if r.kind == kind]
        width = min(
            self._costs.width(CLASSIFY if kind is None else kind, self.limits.segment), self.chains.slots
        )
        slots: list[int] = []
        for active in same:
            slots += active.slots[: width - len(slots)]
            if new := min(active.wanting, width - len(slots), self.chains.room(active)):
                slots += self.chains.begin(active, new)
            if len(slots) >= width:
                break
        if not slots:  # every slot is taken by chains of other kinds: go on with the oldest of them
            oldest = min((r for r in ordered if r.slots), key=lambda r: r.order)
            return oldest.slots[:width], oldest.kind, width
        return slots, kind, width

    # --- the ends of rounds and requests -------------------------------------------------------

    def _end_round(self, active: ActiveJob) -> None:
        """Answer if the label is settled or all chains are spent, else ask for more.

        The answer is that of the first number of chains that decides, in the order of their numbers:
        so it depends on the seed, and not on how many chains a round had.
        """
        if active.job.setting.delta is None or active.kind is None:
            self._answer(active, active.cap)
            return
        outputs, rule = active.outputs(), rule_of(active.job.setting)
        for n in range(active.judged + 1, len(outputs) + 1):
            decision = stopping.decide(outputs[:n], rule)
            if decision.decided or n == active.cap:
                self._answer(active, n)
                return
        active.judged = len(outputs)
        active.settle()
        self._next_round(active, decision)

    def _next_round(self, active: ActiveJob, decision: stopping.Decision | None) -> None:
        """Ask for more chains: all of them, or as many as deciding early is likely to need."""
        if active.job.setting.delta is None or active.kind is None:
            active.goal = active.cap
            return
        kind, steps = active.kind, active.steps
        active.goal += stopping.next_round(
            stopping.UNSEEN if decision is None else decision.needed,
            active.goal,
            active.cap,
            lambda n: steps * self._costs.seconds(kind, n) + self._costs.seconds(CLASSIFY, n),
        )

    def _answer(self, active: ActiveJob, chains: int, *, late: bool = False) -> None:
        result, setting = active.result(chains), active.job.setting
        decision = stopping.decide(result.outputs[0], rule_of(setting))
        capped = setting.delta is not None and active.cap > 1 and not decision.decided and not late
        self.counters.capped += capped
        self._leave(active, whole=not late)
        answer = Answer(active.job, result, decision, late, capped, active.redrawn, active.seconds)
        self._ended.append(answer)

    def _fail(self, active: ActiveJob, error: MetastableError) -> None:
        self._leave(active, whole=False)
        self._ended.append(Failure(active.job, error))

    def _fail_all(self, jobs: list[ActiveJob], what: str, cause: Exception | None = None) -> None:
        for active in {r.order: r for r in jobs}.values():
            self.counters.failures += 1
            self._fail(active, broken(what, cause))

    def _leave(self, active: ActiveJob, *, whole: bool) -> None:
        self.chains.leave(active)
        del self._held[active.job.id]
        self.admission.end(active.permit, whole=whole)

    def _check(self, job: Job) -> None:
        if job.id in self._held:
            raise ValueError(f"a job with id {job.id!r} is already held")
        if tuple(job.image.shape) != self._shape:
            raise ValueError(f"the image has shape {tuple(job.image.shape)}, not {self._shape}")
        if not 0 <= job.seed < 1 << noise.SEED_BITS:
            raise ValueError(f"a seed lies in [0, 2^{noise.SEED_BITS})")
        if not 0 <= job.first < REDRAWN:
            raise ValueError(f"a chain's number lies in [0, {REDRAWN})")
        if self._drain_by is not None:
            raise Draining("the server is stopping: send the request to another one")


def rule_of(setting: Setting) -> stopping.Stopping:
    """When a request of this setting is decided."""
    default = stopping.Stopping()
    return default if setting.delta is None else replace(default, delta=setting.delta)
