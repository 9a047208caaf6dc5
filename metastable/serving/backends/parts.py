"""One question whose chains several replicas make: how they are shared, and what their pieces say together.

Chains have numbers, their noise is a function of seed and number, and the answer is that of the first number
of chains that decides: so it is the same as of one engine, but for the last digits in which sums of other
batches differ.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence

import torch

from metastable import noise, stopping
from metastable.bundle import Bundle
from metastable.defense import Defended
from metastable.engine.engine import rule_of
from metastable.engine.job import Answer
from metastable.errors import DeadlineExceeded, Draining, Overloaded
from metastable.serving import judging
from metastable.serving.backends.base import Judged, Question
from metastable.serving.backends.replica import Part, Piece

FIRST = 32
"""Chains that one replica makes before others share the rest, where a setting may stop early: most images
need fewer."""
ENOUGH = 2
"""Chains from which on a late answer says how sure it is."""
WAITS = 5
"""Times that a part waits for room: what the others have done would be lost with it."""
MERGES = 2
"""Questions that are put together at a time: each takes a thread, and up to a second of it."""


class Parts:
    """Asks for parts and puts them together.  It is for one event loop.

    Args:
        told: the piece that a replica makes of a part.
        count: how many replicas there are now.
    """

    def __init__(
        self,
        bundle: Bundle,
        told: Callable[[Question, Part], Awaitable[Piece]],
        count: Callable[[], int],
    ) -> None:
        self._bundle, self._told, self._count = bundle, told, count
        self._merging = asyncio.Semaphore(MERGES)

    async def ask(self, question: Question, runner: str) -> Judged:
        """The verdict of all chains; `runner` is what it says of who ran the networks.

        Raises what a part raises, but DeadlineExceeded only where too few chains are there to say anything.
        """
        options, setting = question.options, self._bundle.settings[question.options.setting]
        if options.seed is None:
            options = dataclasses.replace(options, seed=noise.secret_seed())
            question = dataclasses.replace(question, options=options)
        pieces, cap = list[Piece](), setting.most_chains
        early = setting.delta is not None and cap > FIRST
        if early or setting.dynamics.asks_the_flag:
            # One replica looks at the image first: two that judge the flag each for itself may differ.
            pieces.append(await self._told(question, Part(0, FIRST if early else self._share(cap), early)))
        late = bool(pieces) and pieces[0].late
        if not (late or (early and pieces[0].decided)):
            shares = self._shares(
                cap, pieces[0] if pieces else None, self._count() - (bool(pieces) and not early)
            )
            more, late = await self._rest(question, shares, sum(len(one.outputs) for one in pieces))
            pieces += more
        async with self._merging:
            answer = await asyncio.to_thread(self._merged, question, pieces, late)
        body, counted = judging.told(
            self._bundle, answer, pieces[0].raw, question.image, options, runner=runner
        )
        return Judged(body, {"anomaly": pieces[0].looked} | answer.seconds, counted)

    def _share(self, chains: int) -> int:
        return -(-chains // max(1, self._count()))

    @staticmethod
    def _shares(cap: int, known: Piece | None, replicas: int) -> list[Part]:
        """The chains that are left, as many of them for each replica."""
        made, raw = (len(known.outputs), known.raw) if known else (0, None)
        shares = list[Part]()
        for left in range(max(1, replicas), 0, -1):
            if share := -(-(cap - made) // left):
                shares.append(Part(made, made + share, False, raw))
                made += share
        return shares

    async def _rest(self, question: Question, shares: Sequence[Part], made: int) -> tuple[list[Piece], bool]:
        """Pieces of these parts, beside `made` chains; whether some came too late."""
        tasks = [asyncio.create_task(self._patient(question, part)) for part in shares]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        pieces = [one for one in found if isinstance(one, Piece)]
        errors = [one for one in found if isinstance(one, DeadlineExceeded)]
        if errors and made + sum(len(one.outputs) for one in pieces) < ENOUGH:
            raise errors[0]
        return pieces, bool(errors) or any(one.late for one in pieces)

    async def _patient(self, question: Question, part: Part) -> Piece | DeadlineExceeded:
        """A part, which waits where nobody has room for it; that it is too late is an answer."""
        for turn in range(WAITS + 1):
            try:
                return await self._told(question, part)
            except DeadlineExceeded as late:
                return late
            except (Overloaded, Draining) as refused:
                wait = refused.retry_after or 1.0
                in_time = question.deadline is None or time.monotonic() + wait < question.deadline
                if turn == WAITS or not in_time:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("the last turn returns or raises")

    def _merged(self, question: Question, pieces: Sequence[Piece], late: bool) -> Answer:
        """One answer of pieces in the order of their chains; their purified images stay where they are."""
        setting = self._bundle.settings[question.options.setting]
        outputs, steps = torch.cat([one.outputs for one in pieces]), torch.cat([one.steps for one in pieces])
        count, rule = len(outputs), rule_of(setting)
        if setting.delta is not None and not late:
            known = len(pieces[0].outputs) if len(pieces) > 1 else 0  # so many did not decide
            settled = (n for n in range(known + 1, count + 1) if stopping.decide(outputs[:n], rule).decided)
            count = next(settled, count)
        decision = stopping.decide(outputs[:count], rule)
        job = judging.job_of(
            self._bundle, question.id, question.image, question.options, pieces[0].raw, question.deadline
        )
        result = Defended(outputs[None, :count], torch.empty(0), steps[None, :count], setting.average)
        capped = setting.delta is not None and not decision.decided and not late
        seconds = {stage: sum(one.seconds[stage] for one in pieces) for stage in ("purify", "classify")} | {
            "queue": max(one.seconds["queue"] for one in pieces)
        }
        return Answer(job, result, decision, late, capped, sum(one.redrawn for one in pieces), seconds)
